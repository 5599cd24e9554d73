/** Answers that wait for each other: in their order, not for long, and with their slots. */
import assert from 'node:assert/strict';
import { closeSync, openSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { OPCODE, OUT, OUT_HEADER_BYTES } from '../../../../mount/kernel/abi.ts';
import { Answers } from '../../../../mount/kernel/answers.ts';
import { FuseRequest, regionOf } from '../../../../mount/kernel/request.ts';
import { BlockError } from '../../../../src/base/block-error.ts';
import { silentLog } from '../../../../src/base/log.ts';
import { type Cleanup, scratchDirectory } from '../../../support/scratch.ts';

const SLOT_BYTES = 8192;

const scene = async (t: Cleanup) => {
  const path = join(await scratchDirectory(t), 'replies');
  const descriptor = openSync(path, 'w+');
  t.after(async () => closeSync(descriptor));
  const turn = { mayWait: true };
  const released: number[] = [];
  const answers = new Answers({
    descriptor,
    mountpoint: '/mnt',
    log: silentLog,
    latencies: null,
    release: (slot) => released.push(slot),
    mayWait: () => turn.mayWait,
  });
  /** `unique` of each reply that was written, and its errno. */
  const written = (): [number, number][] => {
    const bytes = readFileSync(path);
    const replies: [number, number][] = [];
    for (let at = 0; at < bytes.length; at += bytes.readUInt32LE(at + OUT.length))
      replies.push([
        bytes.readUInt32LE(at + OUT.unique),
        Math.abs(bytes.readInt32LE(at + OUT.error)),
      ]);
    return replies;
  };
  return { answers, turn, released, written };
};

const request = (unique: number): FuseRequest => {
  const region = regionOf(new Uint8Array(SLOT_BYTES));
  const found = new FuseRequest(region, unique);
  return Object.assign(found, { uniqueLow: unique, opcode: OPCODE.STATFS });
};

test('answers of a turn wait for each other, and leave in their order, each with its slot', async (t) => {
  const { answers, turn, released, written } = await scene(t);
  for (let unique = 1; unique <= 15; unique++) answers.send(request(unique), 0, 8);
  answers.send(request(16), 5, 8);
  assert.deepEqual(
    written(),
    Array.from({ length: 16 }, (_, i) => [i + 1, i === 15 ? 5 : 0]),
    'sixteen at most',
  );
  assert.deepEqual(
    released,
    Array.from({ length: 16 }, (_, i) => i + 1),
  );
  answers.send(request(17), 0, 0);
  assert.equal(released.length, 16, 'the reply lies in it');
  assert.equal(written().length, 16);
  answers.flush();
  answers.flush();
  assert.equal(written().length, 17);
  turn.mayWait = false;
  answers.send(request(18), 0, 0);
  assert.deepEqual(written().at(-1), [18, 0]);
  assert.deepEqual(released.slice(16), [17, 18]);
});

test('who is refused, or was answered before, waits for nobody', async (t) => {
  const { answers, released, written } = await scene(t);
  answers.refuse(request(1), new BlockError({ kind: 'interrupted', message: 'interrupted' }));
  answers.wasAnswered(request(2));
  assert.deepEqual(written(), [[1, 4]]);
  assert.deepEqual(released, [1, 2]);
  const error = request(3).errorReply(4);
  assert.equal(error.length, OUT_HEADER_BYTES);
  answers.write(request(3), error, 0, error.length);
  assert.deepEqual(released, [1, 2], 'its slot is still used');
});
