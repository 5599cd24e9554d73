import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import yargs, { type Argv } from 'yargs';
import { drivers } from '../../drivers/index.ts';
import { DriverRegistry } from '../../src/block/registry.ts';
import { COMMANDS } from '../../src/cli/command-table.ts';
import { qemuImg } from '../support/qemu-img.ts';

const PAGE = fileURLToPath(new URL('../../../docs/offline-commands.md', import.meta.url));
const MAN_PAGE = fileURLToPath(new URL('../../../docs/man/vdiskfs.1', import.meta.url));

interface Row {
  readonly options: readonly string[];
  readonly here: string;
}

/** Rows of each command; those of `all` hold for every one. */
const readTable = async (): Promise<Map<string, Row[]>> => {
  const table = new Map<string, Row[]>();
  for (const line of (await readFile(PAGE, 'utf8')).split('\n')) {
    const found = /^\| (\w+) \| (`-[^|]*) \| (.*) \|$/.exec(line);
    if (found === null) continue;
    const [, command = '', options = '', here = ''] = found;
    const row = { options: [...options.matchAll(/`(-[^`]+)`/g)].map(([, o = '']) => o), here };
    table.set(command, [...(table.get(command) ?? []), row]);
  }
  return table;
};

/** As `--help` of qemu-img has it: each command, and its options. */
const theirCommands = async (): Promise<Map<string, readonly string[]>> => {
  const commands = new Map<string, readonly string[]>();
  for (const [, name = '', line = ''] of (await qemuImg(['--help'])).matchAll(
    /^ {2}([a-z]+) ([[(-].*filename.*|.*if=input.*)$/gm,
  )) {
    const options = [...line.matchAll(/(?<![\w-])(--?[a-zA-Z][\w-]*)/g)].map(([, o = '']) => o);
    commands.set(name, options);
  }
  return commands;
};

/** What a command of ours takes, as it is typed. */
const ourOptions = async (command: string): Promise<ReadonlySet<string>> => {
  const entry = COMMANDS[command];
  assert.ok(entry !== undefined, `there is a command ${command}`);
  const { declare } = await entry.load();
  const declared = declare(yargs([]) as Argv) as unknown as {
    getOptions(): { key: Record<string, unknown>; alias: Record<string, string[]> };
  };
  const { key, alias } = declared.getOptions();
  const names = [...Object.keys(key), ...Object.keys(alias), ...Object.values(alias).flat()];
  return new Set(names.map((name) => (name.length === 1 ? `-${name}` : `--${name}`)));
};

test('the table of options has every option that qemu-img names, and no other', async () => {
  const table = await readTable();
  const page = await readFile(PAGE, 'utf8');
  const forAll = table.get('all') ?? [];
  const theirs = await theirCommands();
  assert.equal(theirs.size, 15, [...theirs.keys()].join(' '));
  for (const [command, options] of theirs) {
    if (COMMANDS[command] === undefined) {
      assert.match(
        page,
        new RegExp(`\`${command}\`\\s+\\(n/a: `),
        `${command}: why it is not here`,
      );
      continue;
    }
    const own = table.get(command) ?? [];
    const told = new Set([...own, ...forAll].flatMap((row) => row.options));
    const missing = options.filter((o) => !told.has(o));
    assert.deepEqual(missing, [], `${command}: not in the table`);
    const unknown = own.flatMap((row) => row.options).filter((o) => !options.includes(o));
    assert.deepEqual(unknown, [], `${command}: not in qemu-img`);
  }
});

test('what the table calls done is there', async () => {
  const table = await readTable();
  for (const [command, options] of await theirCommands()) {
    if (COMMANDS[command] === undefined) continue;
    const ours = await ourOptions(command);
    const own = table.get(command) ?? [];
    const special = new Set(own.flatMap((row) => row.options));
    const general = (table.get('all') ?? []).map((row) => ({
      ...row,
      options: row.options.filter((o) => options.includes(o) && !special.has(o)),
    }));
    for (const { options: names, here } of [...own, ...general]) {
      if (here.startsWith('n/a: ')) continue;
      const [, instead] = /^`(--[\w-]+)/.exec(here) ?? [];
      assert.ok(instead !== undefined || here.startsWith('done'), `${command}: ${here}`);
      for (const name of names)
        assert.ok(ours.has(instead ?? name), `${command} ${name}: ${here}, and it is not there`);
    }
  }
});

test('what -o takes for qcow2 and raw is there, or the table says why not', async () => {
  const registry = new DriverRegistry(drivers);
  const [creation] = ((await readTable()).get('create') ?? []).filter((r) =>
    r.options.includes('-o'),
  );
  const common = ['size', 'backing_file', 'backing_fmt'];
  for (const format of ['qcow2', 'raw']) {
    const help = await qemuImg(['create', '-f', format, '-o', 'help', '/nowhere']);
    const theirs = [...help.matchAll(/^ {2}([\w.-]+)=/gm)].map(([, name = '']) => name);
    assert.ok(theirs.length > 3);
    const ours = registry.format(format).createOptions.map(({ name }) => name);
    for (const name of theirs) {
      const isTold = creation?.here.includes(`\`${name}\``) === true;
      assert.ok(common.includes(name) || ours.includes(name) || isTold, `${format}: ${name}`);
    }
  }
});

test('the man page names every command, and every option of mount', async () => {
  const page = (await readFile(MAN_PAGE, 'utf8')).replaceAll('\\-', '-');
  const [, commands = '', options = ''] =
    /^\.SH COMMANDS$(.*)^\.SH OPTIONS OF MOUNT$(.*)^\.SH EXIT STATUS$/ms.exec(page) ?? [];
  for (const name of Object.keys(COMMANDS)) assert.match(commands, new RegExp(`\\b${name}\\b`));
  // What is no option of its own, hidden, or told as --no-resume; and those of every command.
  const others = ['--paths', '--mount-flag', '--resume', '--help', '--version'];
  for (const option of await ourOptions('mount')) {
    if (option.startsWith('--') && !others.includes(option))
      assert.ok(new RegExp(`${option}(?![\\w-])`).test(options), option);
  }
  assert.match(options, /--no-resume/);
});
