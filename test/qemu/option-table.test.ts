import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { qemuImg } from '../support/qemu-img.ts';

const PAGE = fileURLToPath(new URL('../../../docs/offline-commands.md', import.meta.url));

/** Options of each command in the table; those of `all` hold for every one. */
const readTable = async (): Promise<Map<string, Set<string>>> => {
  const table = new Map<string, Set<string>>();
  for (const line of (await readFile(PAGE, 'utf8')).split('\n')) {
    const [, command = '', options = ''] = /^\| (\w+) \| (`-[^|]*) \|/.exec(line) ?? [];
    const names = [...options.matchAll(/`(-[^`]+)`/g)].map(([, name = '']) => name);
    table.set(command, new Set([...(table.get(command) ?? []), ...names]));
  }
  return table;
};

test('the table of options has every option that qemu-img names, and no other', async () => {
  const help = await qemuImg(['--help']);
  const table = await readTable();
  const forAll = table.get('all') ?? new Set();
  const commands = [
    'create',
    'convert',
    'compare',
    'map',
    'resize',
    'rebase',
    'commit',
    'snapshot',
    'bitmap',
  ];
  for (const command of commands) {
    const line = new RegExp(`^  ${command} (.*)$`, 'm').exec(help)?.[1] ?? '';
    const theirs = [...line.matchAll(/(?<![\w-])(--?[a-zA-Z][\w-]*)/g)].map(([, o = '']) => o);
    assert.ok(theirs.length > 3, command);
    const own = table.get(command) ?? new Set();
    const missing = theirs.filter((o) => !own.has(o) && !forAll.has(o));
    assert.deepEqual(missing, [], `${command}: not in the table`);
    const unknown = [...own].filter((o) => !theirs.includes(o));
    assert.deepEqual(unknown, [], `${command}: not in qemu-img`);
  }
});
