/** Chains of images with random content, and what is found in them afterwards. */
import { truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { drivers } from '../../drivers/index.ts';
import { guestOffset } from '../../src/base/units.ts';
import { noLocks } from '../../src/block/image-locks.ts';
import type { Node } from '../../src/block/node.ts';
import { DriverRegistry } from '../../src/block/registry.ts';
import { createImage } from '../../src/image/create.ts';
import { imageView } from './image-view.ts';
import { ByteModel, type ModelStep, runModelGuest } from './model-guest.ts';
import { noSecrets } from './no-secrets.ts';
import { testGraph } from './test-graph.ts';

export interface Layer {
  /** Of its file, which `layerFile` makes of it. */
  readonly name: string;
  readonly format: 'raw' | 'qcow2' | 'add-cow';
  readonly lengthBytes: number;
  readonly clusterBytes: number;
  readonly content: readonly ModelStep[];
}

export const layerFile = ({ name, format }: Pick<Layer, 'name' | 'format'>): string =>
  `${name}.${format}`;

/** Makes them, lowest first, each over the one before; returns what a guest of the last one sees. */
export const makeLayers = async (
  directory: string,
  layers: readonly Layer[],
): Promise<ByteModel> => {
  let model = new ByteModel(Buffer.alloc(0));
  const graph = await testGraph({ directory });
  for (const [index, layer] of layers.entries()) {
    const path = await makeLayer(directory, layer, layers[index - 1]);
    model = new ByteModel(
      Buffer.concat([model.bytes, Buffer.alloc(layer.lengthBytes)]).subarray(0, layer.lengthBytes),
    );
    const view = imageView(graph, { path, format: layer.format });
    const part = { start: 0, end: layer.lengthBytes, fill: 40 * (index + 1), reads: true };
    await runModelGuest(view, model, layer.content, part);
    await view.close();
  }
  return model;
};

const makeLayer = async (
  directory: string,
  layer: Layer,
  below: Layer | undefined,
): Promise<string> => {
  const { name, format, lengthBytes, clusterBytes } = layer;
  const path = join(directory, layerFile(layer));
  const options = new Map<string, string>();
  if (format !== 'raw') options.set('cluster_size', String(clusterBytes));
  if (format === 'add-cow') {
    const data = `${name}.data.img`;
    options.set('image_file', data);
    await writeFile(join(directory, data), '');
    await truncate(join(directory, data), lengthBytes);
  }
  await createImage(
    {
      path,
      format,
      virtualSizeBytes: lengthBytes,
      options,
      backing: below === undefined ? null : { filename: layerFile(below), format: below.format },
      withoutOpeningBacking: false,
    },
    {
      registry: new DriverRegistry(drivers),
      locks: noLocks,
      backingDirectories: [],
      secrets: noSecrets,
    },
  );
  return path;
};

/** With all that lies below it, by another reader. `directory`: where its files may lie. */
export const bytesOfImage = (directory: string, path: string, format: string): Promise<Buffer> =>
  withImage(directory, { path, format }, async (node) => {
    const bytes = Buffer.alloc(node.lengthBytes);
    await node.read(guestOffset(0), bytes);
    return bytes;
  });

/** What an image has itself, whatever lies below it. */
export const storedBytesOf = (directory: string, path: string, format: string): Promise<number> =>
  withImage(directory, { path, format }, async (node) => {
    let stored = 0;
    for (let at = 0; at < node.lengthBytes; ) {
      const m = await node.mapping(guestOffset(at), node.lengthBytes - at);
      if (m.kind !== 'unallocated') stored += m.lengthBytes;
      at += m.lengthBytes;
    }
    return stored;
  });

const withImage = async <T>(
  directory: string,
  image: { readonly path: string; readonly format: string },
  run: (node: Node) => Promise<T>,
): Promise<T> => {
  const graph = await testGraph({ directory });
  const node = await graph.open({ ...image, readOnly: true });
  try {
    return await run(node);
  } finally {
    await graph.close(node);
  }
};
