/** The files of an open chain that lie on servers. */
import type { RemoteState } from '../../src/block/driver.ts';
import type { Node } from '../../src/block/node.ts';
import type { Inspection } from './inspection.ts';

export interface RemoteFile {
  readonly path: string;
  readonly state: RemoteState;
}

/** Those that are open of an image, of the files that hold its bytes, and of what lies below it. */
export const remoteFilesOf = (root: Node | null): RemoteFile[] => {
  const files: RemoteFile[] = [];
  for (let node = root; node !== null; node = node.backing) {
    const state = node.file?.isOpen === true ? node.file.driver.remote : undefined;
    if (state !== undefined) files.push({ path: node.path, state });
    for (const dataFile of node.dataFiles) files.push(...remoteFilesOf(dataFile));
  }
  return files;
};

/** Closing the chain while nobody uses it loses nothing: whether its servers have the same still shows when it is opened again. */
export const canBeToldAgain = (root: Node | null): boolean =>
  remoteFilesOf(root).every(({ state }) => state.version !== null);

/** Whether a server has another version now than at the inspection, as far as it tells. */
export const differsFrom = ({ chain, dataFiles }: Inspection, root: Node): boolean => {
  const then = new Map([...chain, ...dataFiles].map((f) => [f.path, f.remote?.version ?? null]));
  return remoteFilesOf(root).some(({ path, state }) => {
    const version = then.get(path) ?? null;
    return version !== null && state.version !== null && state.version !== version;
  });
};
