/** URLs as names of images: canonical forms, prefixes that are allowed, and what the gate makes of names in headers. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BlockError } from '../../../src/base/block-error.ts';
import { identify } from '../../../src/block/file-identity.ts';
import { OpenGate, placesBeside } from '../../../src/block/open-gate.ts';
import { credentialFor, splitCredential } from '../../../src/block/remote-access.ts';
import {
  canonicalUrl,
  directoryOfUrl,
  fileNameOfUrl,
  isBelowUrl,
  isUrl,
  withoutPassword,
} from '../../../src/block/remote-url.ts';

test('spellings of one URL are one image, and passwords are no part of it', async () => {
  for (const [text, canonical] of [
    ['HTTP://Host:80/a/../b.qcow2#part', 'http://host/b.qcow2'],
    ['https://user:pw@host:443/x?y=1', 'https://host/x?y=1'],
    ['nbd://HOST:10809/x', 'nbd://host/x'],
    ['nbd://host:10810/x', 'nbd://host:10810/x'],
    ['nbd+unix:///x?socket=/run/s', 'nbd+unix:///x?socket=/run/s'],
    ['http://[::1]:8080/d', 'http://[::1]:8080/d'],
  ] as const) {
    assert.equal(canonicalUrl(text), canonical);
    assert.equal((await identify(text)).path, canonical);
  }
  const [a, b] = [await identify('http://h/a'), await identify('http://h/b')];
  assert.notEqual(a.inode, b.inode);
  assert.ok(Number.isSafeInteger(a.inode));
  assert.ok(!isUrl('C:/x') && !isUrl('/a://b') && !isUrl('nbd:host') && isUrl('nbd+unix:///x'));
  assert.equal(withoutPassword('http://u:p@h/x?q=a@b'), 'http://h/x?q=a@b');
  assert.equal(withoutPassword('http://u:p@[broken'), 'http://[broken');
});

test('a view is called by the last part of the path', () => {
  assert.equal(fileNameOfUrl('http://h/a/b%20c.qcow2?x=1'), 'b c.qcow2');
  assert.equal(fileNameOfUrl('http://h/a/'), 'a');
  assert.equal(fileNameOfUrl('http://host'), 'host');
  assert.equal(fileNameOfUrl('nbd+unix:///?socket=/s'), 'disk');
  assert.equal(fileNameOfUrl('http://h/%ff'), '%ff');
  assert.equal(directoryOfUrl('http://h/a/b.qcow2?x=1'), 'http://h/a/');
});

test('a prefix ends at a part of the path, and nothing steps out of it', () => {
  const below = 'http://h/images';
  for (const inside of [
    'http://h/images',
    'http://h/images/a',
    'http://H:80/images/a/b',
    'http://h/x/../images/a',
    'http://h/images/a..b/c',
  ]) {
    assert.ok(isBelowUrl(inside, below), inside);
    assert.ok(isBelowUrl(inside, `${below}/`) || inside === below, inside);
  }
  for (const outside of [
    'http://h/images-secret/a',
    'http://h/imagesX',
    'http://h/images/../secret',
    'http://h/images/%2e%2e/secret',
    'http://h/images/..%2fsecret',
    'http://h/images/%2e%2e%2fsecret',
    'http://h/images/a%2f..%2f..%2fsecret',
    'http://h/images/..%5csecret',
    'http://h/images/%252e%252e%252fsecret',
    'http://h/images/a?delete=1',
    'https://h/images/a',
    'http://h:81/images/a',
    'http://h.evil/images/a',
    'http://evil/images/a',
    'http://h@evil/images/a',
    'nbd://h/images/a',
  ]) {
    assert.ok(!isBelowUrl(outside, below), outside);
  }
  assert.ok(isBelowUrl('nbd+unix:///a?socket=/s', 'nbd+unix:///?socket=/s'));
  assert.ok(!isBelowUrl('nbd+unix:///a?socket=/other', 'nbd+unix:///?socket=/s'));
});

test('names in headers lead below allowed URLs and nowhere else', async () => {
  const gate = new OpenGate(['/nowhere', 'http://h/images/', 'nbd://h/base']);
  const referrer = 'http://h/images/top.qcow2';
  const resolve = (name: string, from = referrer) => gate.resolve(name, from);
  assert.equal(await resolve('base.qcow2'), 'http://h/images/base.qcow2');
  assert.equal(await resolve('a#b?c d.raw'), 'http://h/images/a%23b%3Fc%20d.raw');
  assert.equal(await resolve('sub/../x'), 'http://h/images/x');
  assert.equal(await resolve('http://h/images/y', '/nowhere/top'), 'http://h/images/y');
  assert.equal(
    await resolve('json:{"driver":"qcow2","file":{"driver":"http","url":"http://h/images/z"}}'),
    'http://h/images/z',
  );
  assert.equal(await resolve('nbd://h:10809/base'), 'nbd://h/base');
  for (const [name, from, message] of [
    ['../secret', referrer, /below no allowed URL/],
    ['..%2fsecret/../x', 'http://other/images/top', /below no allowed URL/],
    ['http://169.254.169.254/latest', '/nowhere/top', /below no allowed URL/],
    ['http://u:secretword@h/images/x', referrer, /with a user or password/],
    ['base', 'nbd://h/top', /nothing beside an export/],
    ['base', 'nbd+unix:///top?socket=/s', /nothing beside an export/],
    ['nbd://h/based', referrer, /below no allowed URL/],
    ['ftp://h/images/x', referrer, /below no allowed URL/],
    ['json:{"driver":"http","url":"http://other/x"}', referrer, /below no allowed URL/],
    ['/etc/passwd', referrer, /outside the allowed directories/],
  ] as const) {
    await assert.rejects(resolve(name, from), (error: unknown) => {
      assert.ok(error instanceof BlockError && error.errno === 'EACCES', String(error));
      assert.match(error.message, message);
      assert.ok(!error.describe().includes('secretword'));
      return true;
    });
  }
  assert.deepEqual(placesBeside('http://h/a/b'), ['http://h/a/']);
  assert.deepEqual(placesBeside('nbd://h/a'), []);
  assert.deepEqual(placesBeside('/a/b'), ['/a']);
});

test('credentials are those of the longest prefix', () => {
  const token = (prefix: string | null, path: string) =>
    ({ prefix, secret: { kind: 'token-file', path } }) as const;
  const all = [token(null, 'any'), token('http://h/', 'host'), token('http://h/a/', 'place')];
  const pathFor = (url: string, anywhere = true) => {
    const found = credentialFor(url, all, { anywhere });
    return found?.secret.kind === 'token-file' ? found.secret.path : null;
  };
  assert.equal(pathFor('http://h/a/x'), 'place');
  assert.equal(pathFor('http://h/b'), 'host');
  assert.equal(pathFor('http://other/'), 'any');
  assert.equal(pathFor('http://other/', false), null);
  const { url, credential } = splitCredential('http://al%40x:p%3Aw@h/d');
  assert.equal(url, 'http://h/d');
  assert.deepEqual(credential?.secret, { kind: 'basic', user: 'al@x', password: 'p:w' });
});
