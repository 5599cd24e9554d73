/**
 * A thread that packs and unpacks Zstandard frames, one job at a time: unpacking 2 MiB takes ten milliseconds, packing
 * twice that, which the event loop of the engine cannot wait for.
 */
import { parentPort } from 'node:worker_threads';
import { compress, decompress, init } from '@bokuweb/zstd-wasm';
import { nextFrame } from './zstd-frame.ts';

export interface ZstdJob {
  readonly kind: 'pack' | 'unpack';
  /** A cluster, or packed bytes with what follows them. */
  readonly bytes: Uint8Array;
  readonly clusterBytes: number;
}

/** `problem`: what is wrong with the bytes, in words that follow "compressed cluster …". */
export type ZstdOutcome = { readonly bytes: Uint8Array } | { readonly problem: string };

/** More frames are no accident: each costs a call of the library. */
const MAX_FRAMES = 64;

const unpack = (packed: Uint8Array, clusterBytes: number): ZstdOutcome => {
  const cluster = new Uint8Array(clusterBytes);
  let filled = 0;
  for (let at = 0, frames = 0; filled < clusterBytes; frames++) {
    if (frames === MAX_FRAMES) return { problem: `is in more than ${MAX_FRAMES} frames` };
    const frame = nextFrame(packed, at);
    if (typeof frame === 'string') return { problem: frame };
    at = frame.end;
    const room = clusterBytes - filled;
    // The library takes the memory that the frame asks for, and as much as this where the frame is silent.
    const bytes = frame.contentBytes ?? room;
    if (bytes > room) return { problem: `says that it holds more than ${clusterBytes} bytes` };
    if (bytes === 0) continue;
    const options = { defaultHeapSize: room };
    const part = decompress(packed.subarray(frame.start, frame.end), options);
    cluster.set(part, filled);
    filled += part.length;
  }
  return { bytes: cluster };
};

const run = ({ kind, bytes, clusterBytes }: ZstdJob): ZstdOutcome => {
  try {
    return kind === 'pack' ? { bytes: compress(bytes) } : unpack(bytes, clusterBytes);
  } catch (error) {
    return { problem: `cannot be unpacked: ${error instanceof Error ? error.message : error}` };
  }
};

await init();
parentPort?.on('message', (job: ZstdJob) => {
  const outcome = run(job);
  if ('bytes' in outcome) parentPort?.postMessage(outcome, [outcome.bytes.buffer as ArrayBuffer]);
  else parentPort?.postMessage(outcome);
});
