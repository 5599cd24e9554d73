/** A catalog over a temporary directory, with locks and node ids that tests can look into. */
import assert from 'node:assert/strict';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { drivers } from '../../../drivers/index.ts';
import type { CatalogOptions } from '../../../mount/catalog/catalog-options.ts';
import { sourceGate } from '../../../mount/catalog/source-gate.ts';
import { type Catalog, openCatalog } from '../../../mount/catalog.ts';
import type { Entry } from '../../../mount/directory.ts';
import { present } from '../../../src/base/assert.ts';
import { BlockError } from '../../../src/base/block-error.ts';
import { createLog } from '../../../src/base/log.ts';
import { guestOffset } from '../../../src/base/units.ts';
import { Graph } from '../../../src/block/graph.ts';
import type { ImageLock, ImageLocks, LockMode } from '../../../src/block/image-locks.ts';
import { DriverRegistry } from '../../../src/block/registry.ts';
import { NodeIds } from '../../../src/daemon/node-ids.ts';
import { noSecrets } from '../../support/no-secrets.ts';
import { type Cleanup, scratchDirectory } from '../../support/scratch.ts';
import { stub } from '../../support/stub-format.ts';

/** Locks in memory: what is held, and what another program holds. */
export class RecordedLocks implements ImageLocks {
  readonly held = new Map<string, LockMode[]>();
  readonly foreign = new Set<string>();

  async acquire(path: string, mode: LockMode): Promise<ImageLock> {
    if (this.foreign.has(path)) {
      throw new BlockError({ kind: 'locked', message: 'another program holds it', path });
    }
    const modes = this.held.get(path) ?? [];
    modes.push(mode);
    this.held.set(path, modes);
    let released = false;
    return {
      tenure: null,
      release: async () => {
        if (!released) modes.splice(modes.indexOf(mode), 1);
        released = true;
      },
    };
  }

  /** The strongest mode held on a file; null for none. */
  modeOf(path: string): LockMode | null {
    const modes = this.held.get(path) ?? [];
    return modes.includes('write') ? 'write' : (modes[0] ?? null);
  }
}

export interface Fixture {
  /** The source directory. */
  readonly images: string;
  /** Beside it: what the gate does not allow. */
  readonly outside: string;
  readonly locks: RecordedLocks;
  readonly lines: string[];
  /** Of the catalog that was made last. */
  graph(): Graph;
  mount(options?: Partial<CatalogOptions>): Promise<Catalog>;
}

export const catalogFixture = async (t: Cleanup): Promise<Fixture> => {
  const root = await scratchDirectory(t);
  const images = join(root, 'images');
  const outside = join(root, 'outside');
  await mkdir(images);
  await mkdir(outside);
  const locks = new RecordedLocks();
  const lines: string[] = [];
  const log = createLog({ level: 'debug', journald: false, write: (line) => lines.push(line) });
  const ids = new NodeIds({ earlier: [], given: () => undefined });
  const nodeIds = async (keys: readonly string[]): Promise<number[]> => ids.idsFor(keys);
  let last: Graph | null = null;
  const mount = async (options: Partial<CatalogOptions> = {}): Promise<Catalog> => {
    const sources = options.sources ?? [{ name: null, path: images }];
    const gate = await sourceGate({ sources, backingDirectories: [], mountpoint: null });
    const registry = new DriverRegistry([...drivers, stub]);
    const graph = new Graph({
      registry,
      gate,
      locks,
      log,
      cache: 'writeback',
      cacheBytes: 1 << 20,
      discard: 'unmap',
      secrets: noSecrets,
      journalFor: null,
    });
    last = graph;
    const catalog = await openCatalog({
      blocked: { nodeIds: new Set(), paths: new Set() },
      begin: () => () => undefined,
      sources,
      graph,
      registry,
      gate,
      locks,
      log,
      mountpoint: null,
      readOnly: false,
      allowShrink: false,
      detectZeroes: 'off',
      format: null,
      socketPath: '/nowhere.sock',
      pid: process.pid,
      nodeIds,
      ...options,
    });
    t.after(() => catalog.close());
    return catalog;
  };
  return {
    images,
    outside,
    locks,
    lines,
    graph: () => present(last, 'a catalog was made'),
    mount,
  };
};

/** Of all views, sorted. */
export const namesOf = async (catalog: Catalog): Promise<string[]> =>
  (await catalog.entries()).map((entry) => entry.name).sort();

/** A view that is shown. */
export const lookup = async (catalog: Catalog, name: string): Promise<Entry> => {
  const entry = await catalog.lookup(name);
  assert.ok(entry !== null, `${name} is shown`);
  return entry;
};

/** Opens the view. */
export const contentOf = async (entry: Entry): Promise<Buffer> => {
  const buffer = Buffer.alloc(await entry.view.lengthBytes());
  await entry.view.read(guestOffset(0), buffer);
  return buffer;
};

/** Waits for what happens in the background, 5 s at most. */
export const eventually = async (
  what: string,
  holds: () => boolean | Promise<boolean>,
): Promise<void> => {
  const end = Date.now() + 5000;
  while (!(await holds())) {
    assert.ok(Date.now() < end, `in 5 s: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
};
