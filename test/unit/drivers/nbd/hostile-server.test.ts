/** The NBD driver against servers that break the protocol: an error in time, never wrong data, a hang, or memory without bound. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { nbdDriver } from '../../../../drivers/nbd/index.ts';
import { BlockError } from '../../../../src/base/block-error.ts';
import { guestOffset, hostOffset } from '../../../../src/base/units.ts';
import {
  CONTEXT_ID,
  chunk,
  nbdStub,
  optionReply,
  type StubRequest,
  simpleReply,
  u32,
  u64,
} from '../../../support/nbd-stub.ts';
import { patternBytes, readBytes, remoteNode } from '../../../support/remote-node.ts';

const driver = nbdDriver({
  firstPauseMs: 5,
  lastPauseMs: 20,
  deadlineMs: 150,
  handshakeMs: 2000,
  progressMs: 100,
  silenceMs: 400,
});
const SIZE = 1 << 20;

const fails = (errno: string, message: RegExp) => (error: unknown) => {
  assert.ok(error instanceof BlockError, String(error));
  assert.equal(error.errno, errno, error.describe());
  assert.match(error.message, message);
  return true;
};

type Reply = (request: StubRequest) => Uint8Array;

const data = (offset: number, bytes: Uint8Array): Buffer => Buffer.concat([u64(offset), bytes]);

describe('NBD driver: replies that break the protocol', () => {
  const page = patternBytes(4096);
  const lies: readonly (readonly [string, Reply, RegExp])[] = [
    ['no magic', () => Buffer.alloc(20, 0x41), /begins with 0x41414141/],
    ['a simple reply to a read', (r) => simpleReply(r.cookie, 0, page), /a read without chunks/],
    ['another cookie', () => chunk(u64(999), { type: 0, last: true }), /not made/],
    ['a cookie past 2^53', () => chunk(u64(2n ** 63n), { type: 0, last: true }), /not made/],
    ['nothing at all', (r) => chunk(r.cookie, { type: 0, last: true }), /all of its bytes/],
    [
      'half of the bytes',
      (r) => chunk(r.cookie, { type: 1, last: true }, data(r.offset, page.subarray(0, 2048))),
      /all of its bytes/,
    ],
    [
      'bytes twice',
      (r) =>
        Buffer.concat([
          chunk(r.cookie, { type: 1, last: false }, data(r.offset, page)),
          chunk(r.cookie, { type: 1, last: true }, data(r.offset + 1000, page.subarray(0, 10))),
        ]),
      /come before/,
    ],
    [
      'a chunk before its request',
      (r) => chunk(r.cookie, { type: 1, last: true }, data(r.offset - 1, page)),
      /outside of its request/,
    ],
    [
      'a chunk past its request',
      (r) => chunk(r.cookie, { type: 1, last: true }, data(r.offset, Buffer.alloc(4097))),
      /outside of its request/,
    ],
    [
      'a chunk of 4 GiB',
      (r) =>
        chunk(r.cookie, { type: 1, last: true, lengthBytes: 0xffff_ffff }, data(r.offset, page)),
      /outside of its request/,
    ],
    [
      'an offset past 2^53',
      (r) => chunk(r.cookie, { type: 1, last: true }, data(0, page).fill(0xff, 0, 8)),
      /outside of its request/,
    ],
    [
      'a hole of no bytes',
      (r) => chunk(r.cookie, { type: 2, last: true }, Buffer.concat([u64(r.offset), u32(0)])),
      /outside of its request/,
    ],
    [
      'a hole past its request',
      (r) =>
        chunk(r.cookie, { type: 2, last: true }, Buffer.concat([u64(r.offset), u32(0xffff_ffff)])),
      /outside of its request/,
    ],
    [
      'a short hole chunk',
      (r) => chunk(r.cookie, { type: 2, last: true }, u64(r.offset)),
      /hole chunk of 8 bytes/,
    ],
    ['an unknown chunk', (r) => chunk(r.cookie, { type: 77, last: true }), /chunk of type 77/],
    [
      'extents that nobody asked for',
      (r) => chunk(r.cookie, { type: 5, last: true }, Buffer.alloc(12)),
      /nobody asked for/,
    ],
    [
      'an error without an error',
      (r) => chunk(r.cookie, { type: 0x8001, last: true }, Buffer.alloc(6)),
      /without an error/,
    ],
    [
      'an error with a wrong text',
      (r) =>
        chunk(r.cookie, { type: 0x8001, last: true }, Buffer.concat([u32(5), Buffer.from([9, 9])])),
      /another length/,
    ],
    [
      'an error of megabytes',
      (r) => chunk(r.cookie, { type: 0x8001, last: true, lengthBytes: 1 << 28 }),
      /error chunk of 268435456 bytes/,
    ],
  ];
  for (const [what, reply, message] of lies) {
    test(`a read answered with ${what} ends in an error`, async (t) => {
      const stub = await nbdStub(t, {
        sizeBytes: SIZE,
        answer: (request, socket) => void socket.write(reply(request)),
      });
      const node = await remoteNode(t, driver, stub.url);
      await assert.rejects(readBytes(node, 65_536, 4096), fails('EIO', message));
      assert.ok(stub.connections > 1, 'it was tried on a new connection');
    });
  }

  test('errors are told by number and text, and the connection goes on', async (t) => {
    const stub = await nbdStub(t, {
      sizeBytes: SIZE,
      answer: ({ cookie, offset }, socket) => {
        if (offset === 0) {
          const text = Buffer.from('the disk is on fire');
          const body = Buffer.concat([u32(28), Buffer.from([0, text.length]), text]);
          socket.write(chunk(cookie, { type: 0x8001, last: true }, body));
        } else if (offset === 4096) socket.write(simpleReply(cookie, 5));
        else socket.write(chunk(cookie, { type: 1, last: true }, data(offset, page)));
      },
    });
    const node = await remoteNode(t, driver, stub.url);
    await assert.rejects(readBytes(node, 0, 4096), fails('ENOSPC', /on fire/));
    await assert.rejects(readBytes(node, 4096, 4096), fails('EIO', /I\/O error/));
    assert.deepEqual(await readBytes(node, 8192, 4096), page);
    assert.equal(stub.connections, 1);
  });

  test('chunks in any order are put together', async (t) => {
    const stub = await nbdStub(t, {
      sizeBytes: SIZE,
      answer: ({ cookie, offset }, socket) => {
        const part = (i: number) =>
          data(offset + i * 1024, page.subarray(i * 1024, (i + 1) * 1024));
        for (const i of [3, 1, 0]) socket.write(chunk(cookie, { type: 1, last: false }, part(i)));
        const hole = Buffer.concat([u64(offset + 2048), u32(1024)]);
        socket.write(chunk(cookie, { type: 2, last: false }, hole));
        socket.write(chunk(cookie, { type: 0, last: true }));
      },
    });
    const expected = Buffer.from(page).fill(0, 2048, 3072);
    assert.deepEqual(await readBytes(await remoteNode(t, driver, stub.url), 512, 4096), expected);
  });

  test('block status: empty, foreign, endless and overlong extents', async (t) => {
    const context = u32(CONTEXT_ID);
    const lie = async (reply: Reply, message: RegExp): Promise<void> => {
      const stub = await nbdStub(t, {
        sizeBytes: SIZE,
        answer: (request, socket) => void socket.write(reply(request)),
      });
      const node = await remoteNode(t, driver, stub.url);
      const asked = Promise.resolve(node.driver.stores?.(hostOffset(0), SIZE));
      await assert.rejects(asked, fails('EIO', message));
    };
    const status = (r: StubRequest, body: Uint8Array, lengthBytes = body.length) =>
      chunk(r.cookie, { type: 5, last: true, lengthBytes }, body);
    await lie((r) => status(r, context), /block status of 4 bytes/);
    await lie((r) => status(r, Buffer.concat([context, u64(0)])), /extent of no bytes/);
    await lie((r) => status(r, Buffer.concat([u32(1), u64(1)])), /another context/);
    await lie((r) => status(r, context, 0xffff_fffc), /block status of 4294967292/);
    await lie((r) => simpleReply(r.cookie, 0), /without extents/);
    const stub = await nbdStub(t, {
      sizeBytes: SIZE,
      answer: (r, socket) =>
        void socket.write(status(r, Buffer.concat([context, u32(0xffff_ffff), u32(3)]))),
    });
    const node = await remoteNode(t, driver, stub.url);
    const found = await node.driver.stores?.(hostOffset(4096), SIZE - 4096);
    assert.deepEqual(found, { stored: false, lengthBytes: SIZE - 4096 });
  });

  test('a reply of one byte at a time, and silence, end the connection', async (t) => {
    const drip = await nbdStub(t, {
      sizeBytes: SIZE,
      answer: (r, socket) => {
        const bytes = chunk(r.cookie, { type: 1, last: true }, data(r.offset, page));
        let at = 0;
        const timer = setInterval(() => socket.write(bytes.subarray(at, ++at)), 10);
        socket.once('close', () => clearInterval(timer));
      },
    });
    const slow = await remoteNode(t, driver, drip.url);
    await assert.rejects(readBytes(slow, 0, 4096), fails('EIO', /only \d+ bytes came/));
    const mute = await nbdStub(t, { sizeBytes: SIZE, answer: () => undefined });
    const silent = await remoteNode(t, driver, mute.url);
    await assert.rejects(readBytes(silent, 0, 4096), fails('EIO', /has not answered/));
  });
});

describe('NBD driver: negotiations that lead nowhere', () => {
  const opening = async (
    t: Parameters<typeof nbdStub>[0],
    options: Partial<Parameters<typeof nbdStub>[1]>,
  ) => {
    const stub = await nbdStub(t, { sizeBytes: SIZE, answer: () => undefined, ...options });
    return remoteNode(t, driver, stub.url);
  };

  test('what is no NBD server, or an old one, is named so', async (t) => {
    const http = Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n');
    await assert.rejects(opening(t, { greeting: http }), fails('EOPNOTSUPP', /no NBD server/));
    const old = Buffer.concat([
      Buffer.from('NBDMAGIC'),
      Buffer.from('0000420281861253', 'hex'),
      Buffer.alloc(200),
    ]);
    await assert.rejects(opening(t, { greeting: old }), fails('EOPNOTSUPP', /oldstyle/));
    const rigid = Buffer.concat([Buffer.from('NBDMAGICIHAVEOPT'), Buffer.from([0, 0])]);
    await assert.rejects(opening(t, { greeting: rigid }), fails('EOPNOTSUPP', /fixed newstyle/));
    await assert.rejects(
      opening(t, { greeting: Buffer.alloc(3) }),
      fails('EIO', /closed the connection/),
    );
  });

  test('options answered with nonsense end the opening', async (t) => {
    const on = (option: number, reply: Uint8Array) => ({
      option: (asked: number) => (asked === option ? reply : null),
    });
    const cases: readonly (readonly [number, Uint8Array, string, RegExp])[] = [
      [8, Buffer.alloc(20), 'EIO', /does not begin like one/],
      [
        8,
        Buffer.concat([optionReply(8, 3).subarray(0, 16), u32(1 << 30)]),
        'EIO',
        /has 1073741824 bytes/,
      ],
      [7, optionReply(7, 1), 'EIO', /size of the export/],
      [7, optionReply(7, 0x8000_0006, Buffer.from('none\u0007')), 'ENOENT', /no export 'disk'/],
      [7, optionReply(7, 0x8000_0005), 'EOPNOTSUPP', /wants TLS/],
      [7, optionReply(7, 0x8000_0002), 'EACCES', /refuses the export/],
      [7, optionReply(7, 0x8000_0099), 'EIO', /option error 0x80000099/],
      [
        7,
        Buffer.concat(Array.from({ length: 100 }, () => optionReply(7, 3))),
        'EIO',
        /more than 64/,
      ],
      [
        7,
        Buffer.concat([optionReply(7, 3, Buffer.alloc(12, 0xff).fill(0, 0, 2)), optionReply(7, 1)]),
        'EOPNOTSUPP',
        /longer than 2\^53/,
      ],
      [
        7,
        Buffer.concat([
          optionReply(7, 3, Buffer.concat([Buffer.from([0, 3]), u32(3), u32(4096), u32(1 << 20)])),
          optionReply(7, 1),
        ]),
        'EOPNOTSUPP',
        /block sizes 3, 4096/,
      ],
    ];
    for (const [option, reply, errno, message] of cases) {
      await assert.rejects(opening(t, on(option, reply)), fails(errno, message));
    }
  });

  test('a server that says nothing ends an opening in time', async (t) => {
    const began = performance.now();
    const impatient = nbdDriver({ handshakeMs: 200 });
    const stub = await nbdStub(t, {
      sizeBytes: SIZE,
      option: () => Buffer.alloc(0),
      answer: () => undefined,
    });
    await assert.rejects(remoteNode(t, impatient, stub.url), fails('EIO', /no answer within 200/));
    assert.ok(performance.now() - began < 5000);
  });

  test('addresses that name no export are refused', async (t) => {
    for (const [url, message] of [
      ['nbd:///x', /names no host/],
      ['nbd+unix:///x', /names no socket/],
      ['nbd+unix:///x?socket=relative', /names no socket/],
      ['nbd+unix://host/x?socket=/s', /names a host/],
      ['nbd://user:pw@host/x', /no user and password/],
      ['nbd://host/%ff', /percent-encoded/],
      [`nbd://host/${'x'.repeat(5000)}`, /longer than 4096/],
      ['nbd://host/x?tls=1', /has a query/],
    ] as const) {
      await assert.rejects(remoteNode(t, driver, url), (error: unknown) => {
        assert.ok(error instanceof BlockError && error.errno === 'EINVAL', String(error));
        assert.match(error.message, message);
        assert.ok(!error.describe().includes('pw'));
        return true;
      });
    }
  });
});

test('NBD driver: a server that cannot flush is asked for FUA with every change', async (t) => {
  const asked: StubRequest[] = [];
  const [hasFlags, fua, zeroes] = [1, 8, 64];
  const stub = await nbdStub(t, {
    sizeBytes: SIZE,
    flags: hasFlags | fua | zeroes,
    answer: (request, socket) => {
      asked.push(request);
      socket.write(simpleReply(request.cookie, 0));
    },
  });
  const node = await remoteNode(t, driver, stub.url, { readOnly: false });
  await node.write(guestOffset(4096), patternBytes(512));
  await node.writeZeroes(guestOffset(8192), 512, { unmap: false });
  await node.discard(guestOffset(8192), 512);
  await node.flush();
  const seen = asked.map(({ command, flags }) => ({ command, flags }));
  // FUA is 1; 2 keeps the space.
  assert.deepEqual(seen, [
    { command: 1, flags: 1 },
    { command: 6, flags: 3 },
    { command: 6, flags: 1 },
  ]);
});

test('NBD driver: a flush that the server fails never succeeds later by itself', async (t) => {
  let flushes = 0;
  const [hasFlags, flush] = [1, 4];
  const stub = await nbdStub(t, {
    sizeBytes: SIZE,
    flags: hasFlags | flush,
    answer: ({ command, cookie }, socket) => {
      const isFlush = command === 3;
      if (isFlush) flushes++;
      socket.write(simpleReply(cookie, isFlush && flushes === 1 ? 5 : 0));
    },
  });
  const node = await remoteNode(t, driver, stub.url, { readOnly: false });
  await node.write(guestOffset(0), patternBytes(512));
  await assert.rejects(node.flush(), fails('EIO', /I\/O error/));
  await assert.rejects(node.flush(), fails('EIO', /I\/O error/));
  assert.equal(flushes, 1);
});
