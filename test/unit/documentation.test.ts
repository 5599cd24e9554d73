import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

const PROJECT = fileURLToPath(new URL('../../../', import.meta.url));
const ROOMS = 'unit|conformance|reference|crash|qemu|fuzz|mount|control';

test('each test that docs/QCOW2.md names for a feature is there', async () => {
  const page = await readFile(`${PROJECT}docs/QCOW2.md`, 'utf8');
  const rows = page.split('\n').filter((line) => line.startsWith('| '));
  const names = rows.flatMap((row) => {
    const cells = row.split(' | ');
    const shownBy = cells.at(-1) ?? '';
    return [...shownBy.matchAll(new RegExp(`\`((?:${ROOMS})/[\\w/-]+)\``, 'g'))];
  });
  assert.ok(names.length > 40, `${names.length} names`);
  for (const [, name = ''] of names) {
    const places = [`${name}.test.ts`, name, name.replace('mount/', 'mount/suite/').concat('.ts')];
    assert.ok(
      places.some((place) => existsSync(`${PROJECT}test/${place}`)),
      name,
    );
  }
});
