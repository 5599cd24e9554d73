/** The HTTP driver against servers that do what is right, and servers that die, lie, drip and change their mind. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { httpDriver } from '../../../../drivers/http/index.ts';
import { BlockError } from '../../../../src/base/block-error.ts';
import { createLog } from '../../../../src/base/log.ts';
import { guestOffset } from '../../../../src/base/units.ts';
import { type Behaviour, httpOrigin } from '../../../support/http-origin.ts';
import { patternBytes, readBytes, remoteNode } from '../../../support/remote-node.ts';
import { type Cleanup, scratchDirectory } from '../../../support/scratch.ts';

/** Tries follow quickly, but a loaded machine has its time. */
const limits = {
  answerMs: 5000,
  progressMs: 3000,
  deadlineMs: 30_000,
  openDeadlineMs: 10_000,
  firstPauseMs: 5,
  lastPauseMs: 40,
};
const driver = httpDriver(limits);
const CONTENT = patternBytes(300_000);

const fails = (errno: string, message: RegExp) => (error: unknown) => {
  assert.ok(error instanceof BlockError, String(error));
  assert.equal(error.errno, errno, error.describe());
  assert.match(error.message, message);
  return true;
};

/** Misbehaves for the first `times` requests after now. */
const forNext = (times: number, behaviour: Behaviour): Behaviour => {
  let left = times;
  return (...args) => left-- > 0 && behaviour(...args);
};

describe('HTTP driver: a server that does what is right', () => {
  test('reads are ranges of exactly what was asked, over few connections', async (t) => {
    const origin = await httpOrigin(t, CONTENT);
    const node = await remoteNode(t, driver, origin.url());
    assert.equal(node.lengthBytes, CONTENT.length);
    for (const [offset, length] of [
      [0, 1],
      [1, 65_536],
      [CONTENT.length - 3, 3],
      [12_345, 99_999],
    ] as const) {
      assert.deepEqual(
        await readBytes(node, offset, length),
        CONTENT.subarray(offset, offset + length),
      );
      assert.equal(origin.asked.at(-1)?.first, offset);
      assert.equal(origin.asked.at(-1)?.last, offset + length - 1);
    }
    assert.equal(origin.asked.length, 5);
    // A pool opens a second one while the first is not quite done.
    assert.ok(new Set(origin.asked.map((a) => a.connection)).size <= 2, 'kept alive');
  });

  test('at most eight requests are under way, and the others come in their turn', async (t) => {
    const origin = await httpOrigin(t, CONTENT);
    const node = await remoteNode(t, driver, origin.url());
    origin.delayMs = 20;
    const reads = Array.from({ length: 40 }, (_, i) => readBytes(node, i * 5000, 5000));
    for (const [i, bytes] of (await Promise.all(reads)).entries()) {
      assert.deepEqual(bytes, CONTENT.subarray(i * 5000, i * 5000 + 5000));
    }
    assert.equal(origin.mostActive, 8);
    assert.ok(new Set(origin.asked.map((a) => a.connection)).size <= 8);
  });

  test('an empty file has no bytes', async (t) => {
    const origin = await httpOrigin(t, Buffer.alloc(0));
    assert.equal((await remoteNode(t, driver, origin.url())).lengthBytes, 0);
  });

  test('a node is read-only, and is not opened for writing', async (t) => {
    const origin = await httpOrigin(t, CONTENT);
    const node = await remoteNode(t, driver, origin.url());
    await assert.rejects(node.write(guestOffset(0), CONTENT), fails('EROFS', /read-only/));
    await assert.rejects(
      remoteNode(t, driver, origin.url(), { readOnly: false }),
      fails('EROFS', /only read/),
    );
  });
});

describe('HTTP driver: what is no disk to be had', () => {
  test("a server without ranges (python's) is refused, and the file is not fetched", async (t) => {
    const directory = await scratchDirectory(t);
    await writeFile(join(directory, 'disk.raw'), CONTENT);
    const server = spawn(
      'python3',
      ['-u', '-m', 'http.server', '0', '--bind', '127.0.0.1', '--directory', directory],
      { stdio: ['ignore', 'pipe', 'ignore'] },
    );
    t.after(async () => {
      server.kill('SIGKILL');
      await once(server, 'close');
    });
    const [line] = (await once(server.stdout, 'data')) as [Buffer];
    const port = /port (\d+)/.exec(line.toString())?.[1];
    await assert.rejects(
      remoteNode(t, driver, `http://127.0.0.1:${port}/disk.raw`),
      fails('EOPNOTSUPP', /has no ranges/),
    );
  });

  test('missing, forbidden, packed, endless and unreachable files are each told', async (t) => {
    const origin = await httpOrigin(t, CONTENT);
    const opening = (behaviour: Behaviour) => {
      origin.behaviour = behaviour;
      return remoteNode(t, driver, origin.url());
    };
    const status = (code: number): Behaviour => {
      return (_, response) => Boolean(response.writeHead(code).end('no'));
    };
    await assert.rejects(opening(status(404)), fails('ENOENT', /HTTP 404/));
    await assert.rejects(opening(status(403)), fails('EACCES', /HTTP 403/));
    await assert.rejects(opening(status(501)), fails('EIO', /HTTP 501/));
    await assert.rejects(
      opening((asked, response) => {
        origin.serve(asked, response, { headers: { 'content-encoding': 'gzip' } });
        return true;
      }),
      fails('EOPNOTSUPP', /encoded as 'gzip'/),
    );
    await assert.rejects(
      opening((asked, response) => {
        origin.serve(asked, response, { headers: { 'content-range': 'bytes 0-0/*' } });
        return true;
      }),
      fails('EOPNOTSUPP', /does not tell the length/),
    );
    await origin.stop();
    const began = performance.now();
    await assert.rejects(
      opening(() => false),
      fails('EIO', /ECONNREFUSED/),
    );
    assert.ok(performance.now() - began < 500, 'nobody there is told at once');
    await origin.start();
  });

  test('a server that accepts and says nothing ends at the deadline of an opening', async (t) => {
    const server = createServer(() => undefined).listen(0, '127.0.0.1');
    await once(server, 'listening');
    t.after(async () => void server.close());
    const { port } = server.address() as { port: number };
    const began = performance.now();
    await assert.rejects(
      remoteNode(
        t,
        httpDriver({ ...limits, answerMs: 200, openDeadlineMs: 1000 }),
        `http://127.0.0.1:${port}/x`,
      ),
      fails('EIO', /no answer within 200 ms|time for this request is over/),
    );
    const tookMs = performance.now() - began;
    assert.ok(tookMs > 600 && tookMs < 2500, `${tookMs} ms`);
  });
});

describe('HTTP driver: disturbed servers', () => {
  const survives = async (t: Cleanup, times: number, behaviour: Behaviour): Promise<void> => {
    const origin = await httpOrigin(t, CONTENT);
    const node = await remoteNode(t, driver, origin.url());
    origin.behaviour = forNext(times, behaviour);
    assert.deepEqual(await readBytes(node, 1000, 200_000), CONTENT.subarray(1000, 201_000));
    assert.ok(origin.asked.length >= 2 + times, 'it was asked again');
  };

  test('5xx, 429 and resets are tried again', async (t) => {
    for (const code of [500, 502, 503, 504, 429, 408]) {
      await survives(t, 2, (_, response) => Boolean(response.writeHead(code).end('busy')));
    }
    await survives(t, 3, (asked) => Boolean(asked.connection.resetAndDestroy()));
  });

  test('a truncated body goes on from where it broke off', async (t) => {
    const origin = await httpOrigin(t, CONTENT);
    const node = await remoteNode(t, driver, origin.url());
    origin.behaviour = forNext(1, (asked, response) => {
      response.writeHead(206, {
        'content-range': `bytes ${asked.first}-${asked.last}/${CONTENT.length}`,
        'content-length': asked.last - asked.first + 1,
        etag: '"one"',
      });
      response.write(CONTENT.subarray(asked.first, asked.first + 70_000), () =>
        setTimeout(() => asked.connection.destroy(), 20),
      );
      return true;
    });
    assert.deepEqual(await readBytes(node, 500, 200_000), CONTENT.subarray(500, 200_500));
    assert.equal(origin.asked.at(-1)?.first, 70_500);
  });

  test('a short 206 is taken, and the rest asked for', async (t) => {
    await survives(t, 3, (asked, response) => {
      const part = CONTENT.subarray(asked.first, Math.min(asked.last + 1, asked.first + 50_000));
      response.writeHead(206, {
        'content-range': `bytes ${asked.first}-${asked.first + part.length - 1}/${CONTENT.length}`,
        etag: '"one"',
      });
      response.end(part);
      return true;
    });
  });

  test('a server that dies in the middle and comes back is waited for', async (t) => {
    const origin = await httpOrigin(t, CONTENT);
    const node = await remoteNode(t, driver, origin.url());
    origin.delayMs = 30;
    const reads = Array.from({ length: 20 }, (_, i) => readBytes(node, i * 10_000, 10_000));
    await sleep(20);
    await origin.stop();
    await sleep(300);
    await origin.start();
    for (const [i, bytes] of (await Promise.all(reads)).entries()) {
      assert.deepEqual(bytes, CONTENT.subarray(i * 10_000, i * 10_000 + 10_000));
    }
  });

  test('one byte at a time is too slow: the try ends, and the read at its deadline', async (t) => {
    const origin = await httpOrigin(t, CONTENT);
    const drip: Behaviour = (asked, response) => {
      response.writeHead(206, {
        'content-range': `bytes ${asked.first}-${asked.last}/${CONTENT.length}`,
        'content-length': asked.last - asked.first + 1,
        etag: '"one"',
      });
      let at = asked.first;
      const timer = setInterval(() => response.write(CONTENT.subarray(at, ++at)), 10);
      response.once('close', () => clearInterval(timer));
      return true;
    };
    const slow = { ...limits, progressMs: 200, progressBytes: 1000 };
    const node = await remoteNode(t, httpDriver(slow), origin.url());
    origin.behaviour = forNext(2, drip);
    assert.deepEqual(await readBytes(node, 0, 5000), CONTENT.subarray(0, 5000));
    assert.ok(origin.asked.length >= 4);
    const impatient = httpDriver({ ...slow, deadlineMs: 1000 });
    const other = await remoteNode(t, impatient, origin.url());
    origin.behaviour = drip;
    const began = performance.now();
    await assert.rejects(
      readBytes(other, 0, 5000),
      fails('EIO', /only \d+ bytes came|time for this request is over/),
    );
    assert.ok(performance.now() - began < 4000);
  });

  test('wrong lengths and wrong ranges are never taken for data', async (t) => {
    const origin = await httpOrigin(t, CONTENT);
    const node = await remoteNode(t, driver, origin.url());
    const size = CONTENT.length;
    const answer = (headers: Record<string, string | number>, body: Buffer): Behaviour => {
      return (_, response) =>
        Boolean(response.writeHead(206, { etag: '"one"', ...headers }).end(body));
    };
    const body = Buffer.alloc(1000);
    const wrong: readonly [Behaviour, RegExp][] = [
      [answer({ 'content-range': `bytes 0-999/${size}` }, body), /bytes 0-999 where 5000-5999/],
      [answer({ 'content-range': `bytes 5000-6999/${size}` }, body), /5000-6999 where 5000-5999/],
      [
        answer(
          { 'content-range': `bytes 5000-5999/${size}`, 'content-length': 10 },
          body.subarray(0, 10),
        ),
        /Content-Length is 10 for 1000/,
      ],
      [
        answer({ 'content-range': `bytes 5000-5999/${size}` }, Buffer.alloc(5000)),
        /longer than the 1000 bytes/,
      ],
      [answer({ 'content-range': `bytes 5999-5000/${size}` }, body), /no valid range/],
      [answer({ 'content-range': 'bytes 5000-5999/99999999999999999' }, body), /no valid range/],
      [answer({ 'content-range': 'nonsense' }, body), /no valid range/],
      [answer({ 'content-type': 'multipart/byteranges; boundary=x' }, body), /no Content-Range/],
    ];
    for (const [behaviour, message] of wrong) {
      origin.behaviour = behaviour;
      await assert.rejects(readBytes(node, 5000, 1000), fails('EIO', message));
    }
    origin.behaviour = (_, response) => Boolean(response.writeHead(200).end(CONTENT));
    await assert.rejects(readBytes(node, 5000, 1000), fails('EOPNOTSUPP', /has no ranges/));
    origin.behaviour = () => false;
    assert.deepEqual(await readBytes(node, 5000, 1000), CONTENT.subarray(5000, 6000));
  });

  test('bytes that are no HTTP are an error, not a crash', async (t) => {
    const server = createServer((socket) => {
      socket.on('error', () => undefined);
      socket.once('data', () => socket.end('\0\u0001garbage\r\n\r\n'.repeat(100)));
    }).listen(0, '127.0.0.1');
    await once(server, 'listening');
    t.after(async () => void server.close());
    const { port } = server.address() as { port: number };
    await assert.rejects(
      remoteNode(t, driver, `http://127.0.0.1:${port}/x`),
      fails('EIO', /is no HTTP/),
    );
  });
});

describe('HTTP driver: a file that changes under us', () => {
  const changes: readonly [string, (o: Awaited<ReturnType<typeof httpOrigin>>) => void, RegExp][] =
    [
      ['another ETag', (o) => (o.etag = '"two"'), /its ETag is "two", it was "one"/],
      ['no ETag any more', (o) => (o.etag = null), /its ETag is gone/],
      ['another length', (o) => (o.content = patternBytes(400_000)), /its length is 400000 bytes/],
      ['fewer bytes', (o) => (o.content = patternBytes(10)), /its length is 10|ends before byte/],
    ];
  for (const [what, change, message] of changes) {
    test(`${what} is ESTALE, for every read from then on`, async (t) => {
      const origin = await httpOrigin(t, CONTENT);
      const lines: string[] = [];
      const log = createLog({ level: 'error', write: (line) => lines.push(line) });
      const node = await remoteNode(t, driver, origin.url(), { log });
      const { etag, content } = origin;
      change(origin);
      await assert.rejects(readBytes(node, 0, 1000), fails('ESTALE', message));
      assert.equal(node.driver.remote?.isStale, true);
      Object.assign(origin, { etag, content });
      await assert.rejects(readBytes(node, 0, 1000), fails('ESTALE', message));
      assert.equal(lines.length, 1, 'it is logged once');
    });
  }

  test('without ETag, Last-Modified tells; without both, a warning does', async (t) => {
    const origin = await httpOrigin(t, CONTENT);
    origin.etag = null;
    const dated = await remoteNode(t, driver, origin.url());
    origin.lastModified = 'Mon, 01 Jun 2026 10:00:01 GMT';
    await assert.rejects(readBytes(dated, 0, 10), fails('ESTALE', /Last-Modified/));
    origin.lastModified = null;
    const lines: string[] = [];
    const log = createLog({ level: 'warning', write: (line) => lines.push(line) });
    const node = await remoteNode(t, driver, origin.url(), { log });
    assert.equal(node.driver.remote?.version, null);
    assert.match(lines.join(''), /neither ETag nor Last-Modified/);
  });

  test('a file that is taken away is an error, and is there again when it is back', async (t) => {
    const origin = await httpOrigin(t, CONTENT);
    const node = await remoteNode(t, driver, origin.url());
    origin.behaviour = (_, response) => Boolean(response.writeHead(404).end());
    await assert.rejects(readBytes(node, 0, 10), fails('EIO', /HTTP 404/));
    origin.behaviour = () => false;
    assert.deepEqual(await readBytes(node, 0, 10), CONTENT.subarray(0, 10));
  });
});
