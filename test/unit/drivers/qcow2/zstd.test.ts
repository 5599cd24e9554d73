import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { test } from 'node:test';
import fc from 'fast-check';
import { COMPRESSION, compressionOf } from '../../../../drivers/qcow2/compression.ts';
import { nextFrame } from '../../../../drivers/qcow2/zstd-frame.ts';
import { countOf, SEED } from '../../../support/run-parameters.ts';

const zstd = compressionOf(COMPRESSION.zstd);
const CLUSTER_BYTES = 65_536;
const MEMORY_BYTES = 128 << 20;

const textCluster = (bytes = CLUSTER_BYTES): Uint8Array =>
  Buffer.from(Array.from({ length: bytes }, (_, i) => i.toString(36)).join('')).subarray(0, bytes);

/** Frames by hand (RFC 8878): `size` says how many bytes the one block of `content` is. */
const frame = (options: {
  readonly content: Uint8Array;
  readonly size: 'silent' | number;
  readonly times?: number;
}): Uint8Array => {
  const { content, size, times } = options;
  const head = size === 'silent' ? [0x00, 0x58] : [0xa0, 0, 0, 0, 0];
  const bytes = Buffer.from([0x28, 0xb5, 0x2f, 0xfd, ...head, 0, 0, 0, ...content]);
  if (size !== 'silent') bytes.writeUInt32LE(size, 5);
  // Last block; repeated (type 1) or plain (type 0).
  const block = 1 | (times === undefined ? content.length << 3 : 2 | (times << 3));
  bytes.writeUIntLE(block, 4 + head.length, 3);
  return bytes;
};

test('a packed cluster comes back, whatever follows its frame', async () => {
  for (const bytes of [512, 4096, CLUSTER_BYTES, 2 << 20]) {
    for (const cluster of [textCluster(bytes), new Uint8Array(randomBytes(bytes))]) {
      const packed = await zstd.pack(cluster);
      for (const padding of [new Uint8Array(0), new Uint8Array(511), randomBytes(700)]) {
        const found = await zstd.unpack(Buffer.concat([packed, padding]), bytes);
        assert.deepEqual(Buffer.from(found as Uint8Array), Buffer.from(cluster));
        const only = nextFrame(Buffer.concat([packed, padding]), 0);
        assert.deepEqual(only, { start: 0, end: packed.length, contentBytes: bytes });
      }
    }
  }
});

test('frames that are silent about their size, skippable ones and several are read', async () => {
  const half = new Uint8Array(CLUSTER_BYTES / 2).fill(7);
  const skippable = Buffer.concat([
    Buffer.from([0x53, 0x2a, 0x4d, 0x18, 5, 0, 0, 0]),
    half.subarray(0, 5),
  ]);
  const silent = frame({ content: half, size: 'silent' });
  const packed = Buffer.concat([skippable, silent, skippable, silent, randomBytes(100)]);
  const found = await zstd.unpack(packed, CLUSTER_BYTES);
  assert.deepEqual(found, new Uint8Array(CLUSTER_BYTES).fill(7));
});

test('too much, too little and what breaks off are told in words', async () => {
  const seven = Uint8Array.of(7);
  const whole = await zstd.pack(textCluster());
  const cases: readonly [Uint8Array, RegExp][] = [
    [new Uint8Array(0), /breaks off/],
    [new Uint8Array(600), /no Zstandard frame at byte 0/],
    [whole.subarray(0, whole.length - 1), /broken Zstandard frame at byte 0/],
    [frame({ content: seven, size: 2 ** 31, times: 65_536 }), /holds more than 65536 bytes/],
    [frame({ content: seven, size: 2 ** 32 - 1, times: 65_536 }), /holds more than 65536 bytes/],
    [frame({ content: seven, size: 'silent', times: 131_072 }), /cannot be unpacked/],
    [frame({ content: seven, size: 100, times: 65_536 }), /cannot be unpacked/],
    [frame({ content: seven, size: 65_536, times: 100 }), /cannot be unpacked/],
    [frame({ content: seven, size: 100, times: 100 }), /breaks off/],
    [Buffer.concat(Array(65).fill(frame({ content: seven, size: 1 }))), /more than 64 frames/],
    [Uint8Array.of(0x50, 0x2a, 0x4d, 0x18, 255, 255, 255, 255, 0), /breaks off/],
  ];
  for (const [packed, words] of cases) {
    const found = await zstd.unpack(packed, CLUSTER_BYTES);
    assert.ok(typeof found === 'string', `${words} was unpacked`);
    assert.match(found, words);
  }
});

test(`damaged frames end in words or a whole cluster, seed ${SEED}`, async () => {
  const whole = await zstd.pack(textCluster());
  const silent = frame({ content: textCluster(60_000), size: 'silent' });
  const change = fc.tuple(fc.oneof(fc.nat(40), fc.nat(whole.length)), fc.nat(255));
  const damaged = fc.tuple(fc.constantFrom(whole, silent), fc.array(change, { minLength: 1 }));
  const before = process.memoryUsage().rss;
  await fc.assert(
    fc.asyncProperty(damaged, fc.nat(whole.length), async ([packed, changes], cut) => {
      const bad = Buffer.from(packed);
      for (const [at, value] of changes) bad[at % bad.length] = value;
      for (const bytes of [bad, bad.subarray(0, cut)]) {
        const found = await zstd.unpack(bytes, CLUSTER_BYTES);
        if (typeof found !== 'string') assert.equal(found.length, CLUSTER_BYTES);
      }
    }),
    { seed: SEED, numRuns: countOf(300) },
  );
  assert.ok(process.memoryUsage().rss - before < MEMORY_BYTES, 'memory stays within its bound');
  // The threads are whole.
  const found = await zstd.unpack(whole, CLUSTER_BYTES);
  assert.deepEqual(Buffer.from(found as Uint8Array), textCluster());
});
