/** Redirections and credentials of the HTTP driver: who is asked, and who is told what. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { readFile, writeFile } from 'node:fs/promises';
import { createServer } from 'node:https';
import { join } from 'node:path';
import { test } from 'node:test';
import { httpDriver } from '../../../../drivers/http/index.ts';
import { BlockError } from '../../../../src/base/block-error.ts';
import { createLog } from '../../../../src/base/log.ts';
import type { RemoteCredential } from '../../../../src/block/remote-access.ts';
import { type Behaviour, httpOrigin } from '../../../support/http-origin.ts';
import { patternBytes, readBytes, remoteNode } from '../../../support/remote-node.ts';
import { scratchDirectory } from '../../../support/scratch.ts';

const driver = httpDriver({
  answerMs: 5000,
  deadlineMs: 2000,
  openDeadlineMs: 10_000,
  firstPauseMs: 5,
  lastPauseMs: 20,
});
const CONTENT = patternBytes(50_000);
const SECRET = 'correct horse:battery/staple';

const fails = (errno: string, message: RegExp) => (error: unknown) => {
  assert.ok(error instanceof BlockError, String(error));
  assert.equal(error.errno, errno, error.describe());
  assert.match(error.message, message);
  assert.ok(!JSON.stringify(error.toWire()).includes('horse'), 'no secret in an error');
  return true;
};

const redirectTo = (location: string, status = 302): Behaviour => {
  return (asked, response) => {
    if (asked.path !== '/moved.raw') return false;
    response.writeHead(status, { location }).end();
    return true;
  };
};

test('user and password of the URL are sent, and stand in no message and no log', async (t) => {
  const origin = await httpOrigin(t, CONTENT);
  const expected = `Basic ${Buffer.from(`jo:${SECRET}`).toString('base64')}`;
  origin.behaviour = (asked, response) => {
    if (asked.authorization === expected) return false;
    response.writeHead(401).end();
    return true;
  };
  const lines: string[] = [];
  const log = createLog({ level: 'debug', write: (line) => lines.push(line) });
  const withUser = (user: string) =>
    `http://${user}:${encodeURIComponent(SECRET)}@127.0.0.1:${origin.port}/disk.raw`;
  const node = await remoteNode(t, driver, withUser('jo'), { log });
  assert.deepEqual(await readBytes(node, 0, 100), CONTENT.subarray(0, 100));
  await assert.rejects(remoteNode(t, driver, withUser('al'), { log }), fails('EACCES', /HTTP 401/));
  await assert.rejects(remoteNode(t, driver, origin.url(), { log }), fails('EACCES', /HTTP 401/));
  await origin.stop();
  await assert.rejects(readBytes(node, 0, 100), fails('EIO', /ECONN/));
  await origin.start();
  assert.ok(lines.length > 0);
  assert.ok(!lines.join('').includes('horse'));
});

test('a token comes from its file, and is read again when it has been renewed', async (t) => {
  const origin = await httpOrigin(t, CONTENT);
  const path = join(await scratchDirectory(t), 'token');
  await writeFile(path, 'first.token-1==\n');
  let valid = 'Bearer first.token-1==';
  origin.behaviour = (asked, response) => {
    if (asked.authorization === valid) return false;
    response.writeHead(401).end();
    return true;
  };
  const credentials: RemoteCredential[] = [{ prefix: null, secret: { kind: 'token-file', path } }];
  const node = await remoteNode(t, driver, origin.url(), { credentials });
  assert.deepEqual(await readBytes(node, 0, 100), CONTENT.subarray(0, 100));
  valid = 'Bearer second';
  await writeFile(path, 'second');
  assert.deepEqual(await readBytes(node, 0, 100), CONTENT.subarray(0, 100));
  valid = 'Bearer third';
  await assert.rejects(readBytes(node, 0, 100), fails('EIO', /HTTP 401/));
  await writeFile(path, 'two words\r\nX-Header: 1');
  await assert.rejects(
    remoteNode(t, driver, origin.url(), { credentials }),
    fails('EINVAL', /one bearer token/),
  );
});

test('a token for every server goes to no other machine without TLS', async (t) => {
  const path = join(await scratchDirectory(t), 'token');
  await writeFile(path, 'abc');
  const credentials: RemoteCredential[] = [{ prefix: null, secret: { kind: 'token-file', path } }];
  await assert.rejects(
    remoteNode(t, driver, 'http://192.0.2.1/disk.raw', { credentials }),
    fails('EACCES', /not sent without TLS/),
  );
});

test('redirections are followed, remembered, and left when they lead nowhere any more', async (t) => {
  const other = await httpOrigin(t, CONTENT);
  const origin = await httpOrigin(t, CONTENT);
  for (const status of [301, 302, 303, 307, 308]) {
    origin.behaviour = redirectTo(other.url(`here-${status}.raw`), status);
    const node = await remoteNode(t, driver, origin.url('moved.raw'));
    const before = origin.asked.length;
    assert.deepEqual(await readBytes(node, 10, 1000), CONTENT.subarray(10, 1010));
    assert.equal(origin.asked.length, before, 'the target is asked directly');
  }
  const node = await remoteNode(t, driver, origin.url('moved.raw'));
  other.behaviour = (asked, response) =>
    asked.path === '/here-308.raw' && Boolean(response.writeHead(410).end());
  origin.behaviour = redirectTo(other.url('new-place.raw'));
  assert.deepEqual(await readBytes(node, 10, 1000), CONTENT.subarray(10, 1010));
  assert.equal(other.asked.at(-1)?.path, '/new-place.raw');
});

test('credentials do not follow a redirection to another host', async (t) => {
  const other = await httpOrigin(t, CONTENT);
  const origin = await httpOrigin(t, CONTENT);
  const path = join(await scratchDirectory(t), 'token');
  await writeFile(path, 'abc');
  origin.behaviour = redirectTo(other.url());
  const token: RemoteCredential = { prefix: null, secret: { kind: 'token-file', path } };
  const byUrl = `http://jo:pw@127.0.0.1:${origin.port}/moved.raw`;
  await readBytes(await remoteNode(t, driver, byUrl), 0, 10);
  const node = await remoteNode(t, driver, origin.url('moved.raw'), { credentials: [token] });
  await readBytes(node, 0, 10);
  assert.ok(origin.asked.every((a) => a.authorization !== null));
  assert.deepEqual(new Set(other.asked.map((a) => a.authorization)), new Set([null]));
  const named: RemoteCredential = { ...token, prefix: other.base };
  const allowed = await remoteNode(t, driver, origin.url('moved.raw'), {
    credentials: [token, named],
  });
  await readBytes(allowed, 0, 10);
  assert.equal(other.asked.at(-1)?.authorization, 'Bearer abc');
});

test('loops of redirections, and those to other protocols, end', async (t) => {
  const origin = await httpOrigin(t, CONTENT);
  origin.behaviour = redirectTo('/moved.raw');
  const opening = () => remoteNode(t, driver, origin.url('moved.raw'));
  await assert.rejects(opening(), fails('EIO', /more than 5 times/));
  for (const location of ['file:///etc/passwd', 'gopher://x/', 'javascript:1', 'data:,x']) {
    origin.behaviour = redirectTo(location);
    await assert.rejects(opening(), fails('EACCES', /redirects from http: to/));
  }
  origin.behaviour = redirectTo('http://[broken');
  await assert.rejects(opening(), fails('EIO', /no valid address/));
});

test('a certificate that nobody trusts is refused, and never asked for twice', async (t) => {
  const directory = await scratchDirectory(t);
  const [key, cert] = [join(directory, 'key.pem'), join(directory, 'cert.pem')];
  execFileSync(
    'openssl',
    [
      'req',
      '-x509',
      '-newkey',
      'ec',
      '-pkeyopt',
      'ec_paramgen_curve:prime256v1',
      '-nodes',
      '-days',
      '1',
      '-subj',
      '/CN=localhost',
    ].concat(['-addext', 'subjectAltName=IP:127.0.0.1', '-keyout', key, '-out', cert]),
    { stdio: 'ignore' },
  );
  let connections = 0;
  const server = createServer({ key: await readFile(key), cert: await readFile(cert) }, (_, res) =>
    res.end('x'),
  );
  server.on('connection', () => connections++);
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(async () => void server.close());
  const { port } = server.address() as { port: number };
  await assert.rejects(
    remoteNode(t, driver, `https://127.0.0.1:${port}/disk.raw`),
    fails('EACCES', /certificate is not trusted/),
  );
  assert.equal(connections, 1);
});
