import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { closeSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { type Runs, SpliceReply } from '../../../../mount/kernel/splice-reply.ts';
import { addressOf } from '../../../../src/os/c-library.ts';
import { ZERO_RUN } from '../../../../src/translation/lookup.ts';
import { type Cleanup, scratchDirectory } from '../../../support/scratch.ts';

const HEADER = Uint8Array.from({ length: 16 }, (_, i) => i + 1);

const runsOf = (pieces: readonly (readonly [number, number, number])[]): Runs => ({
  count: pieces.length,
  files: Int32Array.from(pieces, ([file]) => file),
  hostOffsets: Float64Array.from(pieces, ([, offset]) => offset),
  lengths: Int32Array.from(pieces, ([, , length]) => length),
});

const setUp = async (t: Cleanup) => {
  const directory = await scratchDirectory(t);
  const content = randomBytes(300_000);
  writeFileSync(join(directory, 'source'), content);
  const source = openSync(join(directory, 'source'), 'r');
  const sent = join(directory, 'sent');
  const descriptor = openSync(sent, 'w');
  const memory = new SharedArrayBuffer(8);
  const replies = new SpliceReply({
    descriptor,
    offset: new DataView(memory),
    offsetAddress: addressOf(new Uint8Array(memory)),
    maxReadBytes: 512 << 10,
  });
  t.after(async () => {
    replies.close();
    closeSync(source);
    closeSync(descriptor);
  });
  return { content, source, replies, sentBytes: () => readFileSync(sent) };
};

test('header and runs are one reply, whatever their alignment', async (t) => {
  const { content, source, replies, sentBytes } = await setUp(t);
  const runs = runsOf([
    [source, 8192, 65_536],
    [source, 100_001, 70_003],
  ]);
  assert.equal(replies.send(runs, HEADER), true);
  const expected = [HEADER, content.subarray(8192, 73_728), content.subarray(100_001, 170_004)];
  assert.deepEqual(sentBytes(), Buffer.concat(expected));
});

test('what the file does not have is not sent, and leaves nothing behind for the next reply', async (t) => {
  const { content, source, replies, sentBytes } = await setUp(t);
  assert.equal(replies.send(runsOf([[source, 262_144, 65_536]]), HEADER), false, 'a short file');
  assert.equal(replies.send(runsOf([[ZERO_RUN, 0, 65_536]]), HEADER), false, 'zeros');
  assert.equal(replies.send(runsOf([[source, 0, 64 << 20]]), HEADER), false, 'too long');
  assert.equal(sentBytes().length, 0);
  assert.equal(replies.send(runsOf([[source, 0, 65_536]]), HEADER), true);
  assert.deepEqual(sentBytes(), Buffer.concat([HEADER, content.subarray(0, 65_536)]));
});
