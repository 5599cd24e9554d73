/** Random replies of an NBD server: what was read is right, or an error; never a crash, a hang or wrong bytes. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { nbdDriver } from '../../drivers/nbd/index.ts';
import { BlockError } from '../../src/base/block-error.ts';
import { CleanupStack } from '../support/cleanup-stack.ts';
import { chunk, nbdStub, simpleReply, u32, u64 } from '../support/nbd-stub.ts';
import { patternBytes, readBytes, remoteNode } from '../support/remote-node.ts';
import { countOf, SEED } from '../support/run-parameters.ts';

const driver = nbdDriver({
  firstPauseMs: 1,
  lastPauseMs: 2,
  deadlineMs: 20,
  progressMs: 50,
  progressBytes: 0,
  silenceMs: 250,
  handshakeMs: 2000,
});
const CONTENT = patternBytes(8192);
const READ = { offset: 1000, lengthBytes: 3000 };

type Piece =
  | { readonly kind: 'data'; readonly from: number; readonly length: number }
  | { readonly kind: 'raw'; readonly bytes: Uint8Array }
  | {
      readonly kind: 'chunk';
      readonly type: number;
      readonly last: boolean;
      readonly bytes: Uint8Array;
    }
  | { readonly kind: 'simple'; readonly error: number };

const piece: fc.Arbitrary<Piece> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      kind: fc.constant('data' as const),
      from: fc.constantFrom(0, 1000, 2000, 3000, 2500),
      length: fc.constantFrom(1, 1000, 500, 3000, 1500),
    }),
  },
  fc.record({ kind: fc.constant('raw' as const), bytes: fc.uint8Array({ maxLength: 40 }) }),
  fc.record({
    kind: fc.constant('chunk' as const),
    type: fc.constantFrom(0, 1, 2, 5, 0x8001, 0x8002, 0x8003, 9),
    last: fc.boolean(),
    bytes: fc.uint8Array({ maxLength: 40 }),
  }),
  fc.record({ kind: fc.constant('simple' as const), error: fc.constantFrom(0, 5, 108, 4_000_000) }),
);

const encode = (cookie: Uint8Array, p: Piece): Uint8Array => {
  switch (p.kind) {
    case 'data': {
      const at = READ.offset + p.from;
      const body = Buffer.concat([u64(at), CONTENT.subarray(at, at + p.length)]);
      return chunk(cookie, { type: 1, last: false }, body);
    }
    case 'raw':
      return p.bytes;
    case 'chunk':
      return chunk(cookie, { type: p.type, last: p.last }, p.bytes);
    case 'simple':
      return Buffer.concat([simpleReply(cookie, p.error), u32(0)]);
  }
};

test(`random replies to a read give the right bytes or an error, SEED=${SEED}`, async () => {
  let right = 0;
  await fc.assert(
    fc.asyncProperty(fc.array(piece, { maxLength: 6 }), async (pieces) => {
      const hooks: (() => Promise<void>)[] = [];
      const cleanup = new CleanupStack({ after: (hook) => hooks.push(hook) });
      try {
        const stub = await nbdStub(cleanup, {
          sizeBytes: CONTENT.length,
          answer: ({ cookie }, socket) => {
            for (const p of pieces) socket.write(encode(cookie, p));
            socket.write(chunk(cookie, { type: 0, last: true }));
          },
        });
        const node = await remoteNode(cleanup, driver, stub.url);
        const { offset, lengthBytes } = READ;
        const got = await readBytes(node, offset, lengthBytes).catch((error: unknown) => {
          assert.ok(error instanceof BlockError, String(error));
          return null;
        });
        if (got === null) return;
        // A chunk of random bytes may be a hole or data that fits; what is left of the pattern must be in its place.
        if (pieces.every((p) => p.kind === 'data')) {
          right++;
          assert.deepEqual(got, CONTENT.subarray(offset, offset + lengthBytes));
        }
      } finally {
        for (const hook of hooks) await hook();
      }
    }),
    {
      seed: SEED,
      numRuns: countOf(60),
      examples: [
        [[{ kind: 'data', from: 0, length: 3000 }]],
        [
          [
            { kind: 'data', from: 1000, length: 1000 },
            { kind: 'data', from: 0, length: 1000 },
            { kind: 'data', from: 2000, length: 1000 },
          ],
        ],
      ],
    },
  );
  assert.ok(right >= 2, 'some replies were whole');
});
