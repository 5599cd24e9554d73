/** Random steps of a guest beside a log of the files below it and a history of what it may find after a power cut. */
import type { Random } from '../../src/base/random.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { Node } from '../../src/block/node.ts';
import type { GuestHistory, GuestWrite } from './guest-history.ts';
import type { FileLog } from './recording-file.ts';

const NOT_YET = Number.POSITIVE_INFINITY;

/** One write, discard or zeroing at any alignment; now and then a flush after it. */
export const guestStep = async (
  node: Node,
  random: Random,
  history: GuestHistory,
  log: FileLog,
): Promise<void> => {
  const length = 1 + random.below(random.below(3) === 0 ? 12_000 : 1500);
  const offset = random.below(node.lengthBytes - length);
  const kind = random.below(10);
  const bytes = new Uint8Array(length);
  if (kind < 7) random.fill(bytes);
  const write = { offset, bytes, begun: log.events, answered: NOT_YET };
  history.writes.push(write);
  if (kind < 7) await node.write(guestOffset(offset), bytes);
  else if (kind < 9) await node.discard(guestOffset(offset), length);
  else await node.writeZeroes(guestOffset(offset), length, { unmap: false });
  write.answered = log.answer();
  if (random.below(8) === 0) await guestFlush(node, history, log);
};

/** A cluster that is written packed, over whatever is there; its last bytes at random, so that several share a host cluster. */
export const packedStep = async (
  node: Node,
  random: Random,
  history: GuestHistory,
  log: FileLog,
): Promise<void> => {
  const { clusterBytes } = node.driver;
  const offset = random.below(Math.floor(node.lengthBytes / clusterBytes)) * clusterBytes;
  const bytes = new Uint8Array(clusterBytes).fill(1 + random.below(250));
  random.fill(bytes.subarray(0, random.below(clusterBytes / 3)));
  const write = { offset, bytes, begun: log.events, answered: NOT_YET };
  history.writes.push(write);
  await node.writeCompressed(guestOffset(offset), bytes);
  write.answered = log.answer();
};

export const guestFlush = async (
  node: Node,
  history: GuestHistory,
  log: FileLog,
): Promise<void> => {
  const begun = log.events;
  await node.flush();
  history.flushes.push({ begun, answered: log.answer() });
};

/** A size is durable when it is answered, and all that was written before it; what is cut off is gone for good. */
export const guestResize = async (
  node: Node,
  lengthBytes: number,
  history: GuestHistory,
  log: FileLog,
): Promise<void> => {
  const begun = log.events;
  const resize = { lengthBytes, begun, answered: NOT_YET };
  history.resizes.push(resize);
  const lost: GuestWrite[] = [];
  if (lengthBytes < node.lengthBytes) {
    const bytes = new Uint8Array(node.lengthBytes - lengthBytes);
    lost.push({ offset: lengthBytes, bytes, begun, answered: NOT_YET });
  }
  history.writes.push(...lost);
  await node.resize(lengthBytes);
  const answered = log.answer();
  resize.answered = answered;
  for (const write of lost) write.answered = answered;
  history.flushes.push({ begun, answered }, { begun: answered, answered });
};
