import assert from 'node:assert/strict';
import { test } from 'node:test';
import { INIT, INIT2, OPCODE } from '../../../../mount/kernel/abi.ts';
import { answerInit } from '../../../../mount/kernel/init.ts';

const request = (minor: number, flags: number, flags2 = 0): Uint8Array => {
  const bytes = new Uint8Array(104);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, bytes.length, true);
  view.setUint32(4, OPCODE.INIT, true);
  view.setUint32(8, 2, true);
  view.setUint32(40, 7, true);
  view.setUint32(44, minor, true);
  view.setUint32(48, 131_072, true);
  view.setUint32(52, flags, true);
  view.setUint32(56, flags2, true);
  return bytes;
};

const EVERYTHING = 0xffff_ffff;

test('only what is wanted and offered is taken', () => {
  const { outcome, bytes } = answerInit(request(41, EVERYTHING, EVERYTHING));
  assert.equal(outcome.minor, 40);
  assert.equal(outcome.flags2, INIT2.HAS_RESEND | INIT2.DIRECT_IO_ALLOW_MMAP);
  assert.equal(outcome.maxWriteBytes, 1 << 20);
  const view = new DataView(bytes.buffer);
  assert.equal(view.getUint32(0, true), bytes.length);
  assert.equal(view.getUint32(8, true), 2, 'the answer carries the request’s unique');
  assert.equal(view.getUint16(32, true), 65_535, 'max_background');
  const poor = answerInit(request(31, INIT.ASYNC_READ | INIT.MAX_PAGES)).outcome;
  assert.equal(poor.flags, INIT.ASYNC_READ | INIT.MAX_PAGES);
  assert.equal(poor.flags2, 0);
});

test('passthrough takes the place of the writeback cache, where it is offered', () => {
  const wishes = { passthrough: true };
  const { outcome, bytes } = answerInit(request(40, EVERYTHING, EVERYTHING), wishes);
  assert.equal(outcome.flags2 & INIT2.PASSTHROUGH, INIT2.PASSTHROUGH);
  assert.equal(outcome.flags & INIT.WRITEBACK_CACHE, 0);
  assert.equal(new DataView(bytes.buffer).getUint32(16 + 36, true), 1, 'max_stack_depth');
  const old = answerInit(request(40, EVERYTHING, INIT2.HAS_RESEND), wishes).outcome;
  assert.equal(old.flags & INIT.WRITEBACK_CACHE, INIT.WRITEBACK_CACHE);
});

test('each flag can be withheld', () => {
  for (const [name, flag] of Object.entries(INIT)) {
    const { outcome } = answerInit(request(40, EVERYTHING, EVERYTHING), {
      withhold: name,
      passthrough: true,
    });
    assert.equal(outcome.flags & flag, 0, name);
  }
  for (const [name, flag] of Object.entries(INIT2)) {
    const { outcome } = answerInit(request(40, EVERYTHING, EVERYTHING), {
      withhold: name,
      passthrough: true,
    });
    assert.equal(outcome.flags2 & flag, 0, name);
  }
});

test('a kernel that is too old, and what is no INIT, are refused', () => {
  assert.throws(() => answerInit(request(20, EVERYTHING)), /7\.28 is needed/);
  assert.throws(() => answerInit(new Uint8Array(104)), /no INIT/);
  assert.throws(() => answerInit(new Uint8Array(10)), /no INIT/);
});
