/** Where an image that has a restart journal lies, and engines that open it. */
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { createLog } from '../../src/base/log.ts';
import type { DriverDescriptor } from '../../src/block/driver.ts';
import type { Node } from '../../src/block/node.ts';
import { type Cleanup, scratchDirectory } from './scratch.ts';
import { testGraph } from './test-graph.ts';

export interface JournaledImage {
  readonly directory: string;
  /** Of the image; nothing lies there yet. */
  readonly path: string;
  /** An empty directory. */
  readonly journals: string;
}

/** `name`: of the image file. */
export const journaledImage = async (t: Cleanup, name: string): Promise<JournaledImage> => {
  const directory = await scratchDirectory(t);
  const [path, journals] = [join(directory, name), join(directory, 'journals')];
  await mkdir(journals);
  return { directory, path, journals };
};

export interface JournaledOpening {
  readonly node: Node;
  /** Of the log. */
  readonly lines: readonly string[];
  readonly close: () => Promise<void>;
}

export interface JournaledOpeningOptions {
  /** See `ImageLock`. */
  readonly tenure: string | null;
  readonly readOnly?: boolean;
  /** Takes the place of the `file` protocol. */
  readonly file?: DriverDescriptor;
}

/** Opens a qcow2. An engine that is killed is one that nobody closes. */
export const openJournaled = async (
  { directory, path, journals }: JournaledImage,
  { tenure, readOnly = false, file }: JournaledOpeningOptions,
): Promise<JournaledOpening> => {
  const lines: string[] = [];
  const log = createLog({ level: 'info', journald: false, write: (line) => lines.push(line) });
  const how = { directory, journalDirectory: journals, tenure, log };
  const graph = await testGraph({ ...how, ...(file && { file }) });
  const node = await graph.open({ path, format: 'qcow2', readOnly });
  return { node, lines, close: () => graph.close(node) };
};

const AUTOCLEAR_AT = 88;

/** The autoclear features of a header of version 3. */
export const autoclearOf = async (path: string): Promise<bigint> =>
  (await readFile(path)).readBigUInt64BE(AUTOCLEAR_AT);

/** Writes them, as no program does that minds the format. */
export const setAutoclear = async (path: string, bits: bigint): Promise<void> => {
  const image = await readFile(path);
  image.writeBigUInt64BE(bits, AUTOCLEAR_AT);
  await writeFile(path, image);
};
