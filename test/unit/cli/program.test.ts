import assert from 'node:assert/strict';
import { mkdir, open, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { COMMANDS } from '../../../src/cli/command-table.ts';
import { scratchDirectory } from '../../support/scratch.ts';
import { PROGRAM, run, vdiskfs } from '../../support/vdiskfs.ts';

test('bad usage exits 2 and points to the help, on stderr alone', async () => {
  const cases: [string[], RegExp][] = [
    [[], /^vdiskfs: a command is missing: see vdiskfs --help\n$/],
    [['frobnicate'], /^vdiskfs: frobnicate: is no command: see vdiskfs --help\n$/],
    [['frobnicate', 'disk.raw'], /^vdiskfs: frobnicate: is no command/],
    [['info'], /^vdiskfs: info: needs FILE: see vdiskfs info --help\n$/],
    [['resize', 'a'], /^vdiskfs: resize: needs FILE SIZE: see/],
    [['mount'], /^vdiskfs: mount: needs SOURCE\.\.\. MOUNTPOINT: see/],
    [['convert'], /^vdiskfs: convert: needs SRC\.\.\. DST: see/],
    [['info', 'a', 'b'], /^vdiskfs: info: unknown argument: b/],
    [['info', 'a', '--frob'], /^vdiskfs: info: unknown argument: frob/],
    [['info', 'a', '--lock', 'maybe'], /lock/],
    [['info', 'a', '--lock', 'on', '--lock', 'off'], /^vdiskfs: --lock: is given more than once/],
    [['create', 'x.raw', '12q'], /^vdiskfs: SIZE: '12q' is not a size .*create --help\n$/],
    [['create', '-o', 'speed=1', 'x.raw', '1M'], /^vdiskfs: -o: .*no option 'speed'/],
    [['create', '-b', 'y.raw', 'x.raw'], /^vdiskfs: -b: needs -F/],
  ];
  for (const [args, line] of cases) {
    const done = await vdiskfs(args);
    assert.equal(done.status, 2, args.join(' '));
    assert.match(done.stderr, line);
    assert.equal(done.stdout, '');
  }
});

test('check and compare keep their exit codes free of bad usage', async () => {
  assert.equal((await vdiskfs(['check'])).status, 1);
  assert.equal((await vdiskfs(['compare', 'a'])).status, 2);
});

test('a failure exits 1 with one line that names the file', async (t) => {
  const missing = join(await scratchDirectory(t), 'missing.raw');
  for (const args of [
    ['info', missing],
    ['map', missing],
    ['check', missing],
  ]) {
    const done = await vdiskfs(args);
    assert.equal(done.status, 1);
    assert.equal(done.stderr, `vdiskfs: ${missing}: no such file or directory\n`);
  }
  assert.equal((await vdiskfs(['compare', missing, missing])).status, 2);
});

test('a directory is not taken for an image', async (t) => {
  const directory = await scratchDirectory(t);
  const done = await vdiskfs(['info', directory]);
  assert.equal(done.status, 1);
  assert.match(done.stderr, /is neither a file nor a block device/);
});

test('every command explains itself with its options and an example', async () => {
  const top = await vdiskfs(['--help']);
  assert.equal(top.status, 0);
  for (const [name, entry] of Object.entries(COMMANDS)) {
    assert.ok(top.stdout.includes(`vdiskfs ${name}`), `${name} is in vdiskfs --help`);
    const help = await vdiskfs([name, '--help']);
    assert.equal(help.status, 0, help.stderr);
    assert.ok(help.stdout.startsWith(`vdiskfs ${name}`), help.stdout);
    assert.ok(help.stdout.includes(entry.summary), help.stdout);
    assert.match(help.stdout, /Examples:\n {2}vdiskfs /);
  }
});

test('the version is that of the package', async () => {
  const done = await vdiskfs(['--version']);
  assert.equal(done.status, 0);
  assert.match(done.stdout, /^vdiskfs \d+\.\d+\.\d+\n$/);
});

test('raw images are created, described and replaced', async (t) => {
  const directory = await scratchDirectory(t);
  const image = join(directory, 'a.raw');
  assert.equal((await vdiskfs(['create', '-f', 'raw', image, '1M'])).status, 0);
  const info = await vdiskfs(['info', '--json', image]);
  assert.deepEqual(JSON.parse(info.stdout), {
    'virtual-size': 1048576,
    filename: image,
    format: 'raw',
    'actual-size': 0,
    'dirty-flag': false,
  });
  await writeFile(image, 'old content');
  assert.equal((await vdiskfs(['create', '-f', 'raw', image, '2M'])).status, 0);
  assert.equal((await vdiskfs(['check', image])).status, 63);
  const map = await vdiskfs(['map', '--output=json', image]);
  assert.deepEqual(JSON.parse(map.stdout), [
    { start: 0, length: 2097152, depth: 0, present: true, zero: true, data: false, offset: 0 },
  ]);
});

test('an image that cannot be finished is not left behind', async (t) => {
  const directory = await scratchDirectory(t);
  const image = join(directory, 'huge.raw');
  const done = await vdiskfs(['create', '-f', 'raw', image, '7P']);
  assert.equal(done.status, 1, 'no file system of a test machine holds a file of 7 PiB');
  assert.equal((await vdiskfs(['info', image])).status, 1);
});

test('a reader of the output that goes away is no failure', async (t) => {
  const image = join(await scratchDirectory(t), 'holes.img');
  // Every other block is a hole: more records than a pipe holds.
  const file = await open(image, 'w');
  for (let i = 0; i < 2000; i++) await file.write(Buffer.alloc(4096, 1), 0, 4096, i * 8192);
  await file.close();
  const script = '"$0" "$@" | head -c 1; exit $PIPESTATUS';
  const args = ['-c', script, process.execPath, PROGRAM, 'map', '--json', image];
  const done = await run('bash', args);
  assert.equal(done.status, 0);
  assert.equal(done.stdout, '[');
  assert.equal(done.stderr, '');
});

test('what create refuses leaves an existing file alone', async (t) => {
  const directory = await scratchDirectory(t);
  const image = join(directory, 'kept.raw');
  await truncate(await touched(image), 4096);
  for (const args of [
    ['-f', 'raw', '-b', 'kept.raw', '-F', 'raw', image],
    ['-f', 'raw', image],
    ['-f', 'vhs', image, '1M'],
  ]) {
    assert.equal((await vdiskfs(['create', ...args])).status, 1);
  }
  const info = await vdiskfs(['info', '--json', image]);
  assert.equal(JSON.parse(info.stdout)['virtual-size'], 4096);
  await mkdir(join(directory, 'sub'));
  assert.equal((await vdiskfs(['create', join(directory, 'sub'), '1M'])).status, 1);
});

const touched = async (path: string): Promise<string> => {
  await writeFile(path, '');
  return path;
};
