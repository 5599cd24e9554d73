/** Making add-cow files. The header is written last, after a flush: one that a crash left half-made has no magic. */
import { present } from '../../src/base/assert.ts';
import { BlockError } from '../../src/base/block-error.ts';
import { divideUp, isPowerOfTwo } from '../../src/base/range.ts';
import { guestOffset } from '../../src/base/units.ts';
import type {
  CreateOption,
  CreatePlan,
  CreateRequest,
  DataFilePlan,
} from '../../src/block/image-creation.ts';
import type { Node } from '../../src/block/node.ts';
import { bitmapBytesOf } from './bitmap.ts';
import { encodeHeader } from './header-write.ts';
import {
  DEFAULT_CLUSTER_BYTES,
  headerBytesOf,
  MAX_CLUSTER_BITS,
  MIN_CREATED_CLUSTER_BITS,
} from './layout.ts';

export const createOptions: readonly CreateOption[] = [
  {
    name: 'image_file',
    type: 'string',
    help: 'The file that will hold the data, named from the new file; it must be there',
    isNeeded: true,
  },
  { name: 'image_fmt', type: 'string', help: 'Its format [raw]' },
  { name: 'cluster_size', type: 'size', help: 'Cluster size, a power of two from 4k to 2M [64k]' },
];

const WRITE_BYTES = 1 << 20;

/** See `DriverDescriptor.createDataFile`. */
export const createDataFile = (options: ReadonlyMap<string, string>): DataFilePlan => {
  const filename = options.get('image_file') ?? '';
  if (filename === '')
    throw wrongOption('image_file', 'is needed: the file that will hold the data');
  return { link: { filename, format: options.get('image_fmt') ?? 'raw' }, isMade: false };
};

/** Refuses options that no image can have, and an image file that would have to be cut. */
export const checkCreate = (plan: CreatePlan, dataFile: Node | null): void => {
  encodeHeader(headerOf(plan), plan.path);
  const imageBytes = dataFile?.lengthBytes ?? 0;
  if (imageBytes <= plan.virtualSizeBytes) return;
  const size = `the image file has ${imageBytes} bytes, more than ${plan.virtualSizeBytes}`;
  throw wrongOption('size', `${size}: it is never cut`);
};

/** Writes an add-cow file whose clusters are all below; without a backing file, all in the image file. */
export const create = async (request: CreateRequest): Promise<void> => {
  const { file, virtualSizeBytes, path } = request;
  const image = present(request.dataFile, 'the image file was asked for');
  const plan = headerOf(request);
  const header = encodeHeader(plan, path);
  const bitmapStart = headerBytesOf(plan.clusterBytes);
  const clusters = divideUp(virtualSizeBytes, plan.clusterBytes);
  await file.resize(bitmapStart + bitmapBytesOf(clusters, plan.clusterBytes));
  if (plan.isAllAllocated) await setAllBits(file, bitmapStart, clusters);
  await growImage(image, virtualSizeBytes);
  await file.flush();
  await file.write(guestOffset(0), header);
};

const growImage = async (image: Node, lengthBytes: number): Promise<void> => {
  if (lengthBytes > image.lengthBytes) await image.resize(lengthBytes);
  await image.flush();
};

const setAllBits = async (file: Node, start: number, clusters: number): Promise<void> => {
  const bytes = divideUp(clusters, 8);
  for (let done = 0; done < bytes; done += WRITE_BYTES) {
    const part = new Uint8Array(Math.min(WRITE_BYTES, bytes - done)).fill(0xff);
    const isLast = done + part.length === bytes;
    // Bits past the last cluster are zero.
    if (isLast && clusters % 8 !== 0) part[part.length - 1] = (1 << (clusters % 8)) - 1;
    await file.write(guestOffset(start + done), part);
  }
};

const headerOf = (plan: CreatePlan) => {
  const { options, backing } = plan;
  const clusterBytes = Number(options.get('cluster_size') ?? DEFAULT_CLUSTER_BYTES);
  const min = 2 ** MIN_CREATED_CLUSTER_BITS;
  if (!isPowerOfTwo(clusterBytes) || clusterBytes < min || clusterBytes > 2 ** MAX_CLUSTER_BITS)
    throw wrongOption('cluster_size', `${clusterBytes} is no power of two from 4k to 2M`);
  const { link: image } = createDataFile(options);
  if (backing !== null && backing.filename === image.filename)
    throw wrongOption('image_file', `'${image.filename}' is the backing file too`);
  // Without a backing file there is nothing to fall back to.
  return { clusterBytes, backing, image, isAllAllocated: backing === null };
};

const wrongOption = (option: string, message: string): BlockError =>
  new BlockError({ kind: 'bad-request', message: `option '${option}': ${message}`, op: 'create' });
