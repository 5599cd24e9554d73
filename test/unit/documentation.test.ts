import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { readdir, readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import type { ControlContext } from '../../src/control/context.ts';
import { createMonitor } from '../../src/control/monitor.ts';

const PROJECT = fileURLToPath(new URL('../../../', import.meta.url));
const ROOMS = 'unit|conformance|reference|crash|qemu|fuzz|mount|control';

const pagesOfDocs = async (): Promise<readonly string[]> =>
  (await readdir(`${PROJECT}docs`)).filter((name) => name.endsWith('.md'));

const codesOf = (text: string): readonly string[] =>
  [...text.matchAll(/`([^`]+)`/g)].map(([, code = '']) => code);

test('each test that docs/QCOW2.md names for a feature is there', async () => {
  const page = await readFile(`${PROJECT}docs/QCOW2.md`, 'utf8');
  const rows = page.split('\n').filter((line) => line.startsWith('| '));
  const isTest = new RegExp(`^(?:${ROOMS})/[\\w/-]+$`);
  const names = rows.flatMap((row) =>
    codesOf(row.split(' | ').at(-1) ?? '').filter((c) => isTest.test(c)),
  );
  assert.ok(names.length > 40, `${names.length} names`);
  for (const name of names) {
    const places = [`${name}.test.ts`, `${name}.ts`, name];
    assert.ok(
      places.some((place) => existsSync(`${PROJECT}test/${place}`)),
      name,
    );
  }
});

test('README.md names every page of docs/, and no link leads nowhere', async () => {
  const names = (await pagesOfDocs()).map((name) => `docs/${name}`);
  const readme = await readFile(`${PROJECT}README.md`, 'utf8');
  for (const name of names) assert.ok(readme.includes(`](${name})`), name);
  for (const page of ['README.md', 'ARCHITECTURE.md', 'systemd/README.md', ...names]) {
    const text = await readFile(join(PROJECT, page), 'utf8');
    for (const [, to = ''] of text.matchAll(/\]\(([^)#\s]+)\)/g)) {
      if (/^https?:/.test(to)) continue;
      assert.ok(existsSync(join(PROJECT, dirname(page), to)), `${page}: ${to}`);
    }
  }
});

/** `a-b|c|d` as a page spells it: `a-b`, `a-c`, `a-d`. */
const spelledOut = (code: string): readonly string[] => {
  const [first = '', ...others] = code.split('\\|');
  const stem = first.slice(0, first.lastIndexOf('-') + 1);
  return [first, ...others.map((word) => stem + word)];
};

test('the commands of the control socket are those of the table in docs/CONTROL.md', async () => {
  const page = await readFile(`${PROJECT}docs/CONTROL.md`, 'utf8');
  const table = page.split('\n## ').find((section) => section.startsWith('Commands')) ?? '';
  const rows = table.split('\n').filter((line) => line.startsWith('| '));
  const told = rows.flatMap((row) => codesOf(row)).flatMap((code) => spelledOut(code));
  // It looks at no view.
  const monitor = createMonitor({} as ControlContext);
  const commands = (await monitor.execute('query-commands', {})) as readonly { name: string }[];
  assert.deepEqual(
    [...told].sort(),
    commands.map(({ name }) => name),
  );
});
