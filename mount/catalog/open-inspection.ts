/** What an inspection would say of an image that is open: from its nodes, without opening any file a second time. */
import { BlockError } from '../../src/base/block-error.ts';
import type { Node } from '../../src/block/node.ts';
import { type ChainLayer, type DataFile, fileOf } from './chain-walk.ts';
import { statHostFile } from './host-file.ts';
import type { Inspection } from './inspection.ts';

const BLOCK_BYTES = 512;

/** The header in the file has to be what is open: flushed. Errors: those of reading it. */
export const inspectionOf = async (root: Node): Promise<Inspection> => {
  const { descriptor, file, path } = root;
  const description = file === null ? undefined : await descriptor.inspect?.(file, path);
  if (description === undefined) {
    const message = `the format ${descriptor.name} cannot be inspected`;
    throw new BlockError({ kind: 'unsupported', message, path });
  }
  const chain: ChainLayer[] = [];
  const dataFiles: DataFile[] = [];
  for (let node: Node | null = root; node !== null; node = node.backing) {
    chain.push(await layerOf(node));
    for (const dataFile of node.dataFiles) {
      const layer = await layerOf(dataFile);
      if (node === root) dataFiles.push({ ...layer, allocatedBytes: await allocatedOf(dataFile) });
      else chain.push(layer);
    }
  }
  return {
    driver: descriptor,
    declaredFormat: descriptor.name,
    description: { ...description, virtualSizeBytes: root.lengthBytes, dirty: false },
    chain,
    dataFiles,
    error: null,
  };
};

const layerOf = async ({ path, descriptor, file }: Node): Promise<ChainLayer> => {
  const host = await statHostFile(path);
  const state = file?.driver.remote;
  const remote =
    state === undefined
      ? null
      : {
          version: state.version,
          isWritable: state.isWritable,
          lengthBytes: file?.lengthBytes ?? 0,
        };
  return { ...fileOf(host), format: descriptor.name, remote };
};

const allocatedOf = async ({ path, driver }: Node): Promise<number> => {
  const host = await statHostFile(path);
  return host.kind === 'remote' ? driver.lengthBytes : host.blocks * BLOCK_BYTES;
};
