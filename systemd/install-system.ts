/**
 * `npm run install-system [-- --prefix DIR] [-- --uninstall]`: puts the built program, the mount helper, units and man
 * pages in place below a prefix, or takes away what it put there.
 *
 * The program's directory is put beside the old one and then takes its place, so that one that runs, or is started
 * meanwhile, never finds half of it.
 */
import {
  chmodSync,
  cpSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmdirSync,
  rmSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const PROJECT = fileURLToPath(new URL('../..', import.meta.url));
const DEFAULT_PREFIX = '/usr/local';
/** What the units in the tree say; the installed ones say the prefix. */
const PREFIX_IN_UNITS = '/usr/local/';
/** mount(8) looks nowhere else. */
const SYSTEM_HELPER = '/sbin/mount.vdiskfs';
const SYSTEM_PREFIXES = ['/usr', '/usr/local'];
/** Of the build, what runs. */
const PROGRAM_PARTS = ['dist/src', 'dist/mount', 'dist/drivers', 'package.json', 'LICENSE'];

interface Places {
  readonly program: string;
  readonly command: string;
  readonly helper: string;
  readonly systemUnit: string;
  readonly userUnit: string;
  readonly manuals: Readonly<Record<string, string>>;
}

const placesBelow = (prefix: string): Places => ({
  program: join(prefix, 'lib/vdiskfs'),
  command: join(prefix, 'bin/vdiskfs'),
  helper: join(prefix, 'sbin/mount.vdiskfs'),
  systemUnit: join(prefix, 'lib/systemd/system/vdiskfs@.service'),
  userUnit: join(prefix, 'share/systemd/user/vdiskfs@.service'),
  manuals: {
    'vdiskfs.1': join(prefix, 'share/man/man1/vdiskfs.1'),
    'mount.vdiskfs.8': join(prefix, 'share/man/man8/mount.vdiskfs.8'),
  },
});

/** Packages that the program needs when it runs, as the lock file says: `node_modules/…` paths. */
const runtimePackages = (): string[] => {
  const lock = JSON.parse(readFileSync(join(PROJECT, 'package-lock.json'), 'utf8')) as {
    packages: Record<string, { dev?: boolean }>;
  };
  return Object.entries(lock.packages)
    .filter(([path, entry]) => path !== '' && entry.dev !== true)
    .map(([path]) => path)
    .filter((path) => existsSync(join(PROJECT, path)));
};

const place = (path: string, content: string, mode: number): void => {
  mkdirSync(dirname(path), { recursive: true });
  const fresh = `${path}.new`;
  writeFileSync(fresh, content, { mode });
  chmodSync(fresh, mode);
  renameSync(fresh, path);
};

const copyProgram = (program: string): void => {
  const fresh = `${program}.new`;
  const old = `${program}.old`;
  for (const path of [fresh, old]) rmSync(path, { recursive: true, force: true });
  mkdirSync(fresh, { recursive: true });
  for (const path of [...PROGRAM_PARTS, ...runtimePackages()]) {
    const nested = path.startsWith('node_modules/');
    cpSync(join(PROJECT, path), join(fresh, path), {
      recursive: true,
      dereference: true,
      // Packages inside packages are in the list themselves.
      filter: (from) => !nested || !from.slice(join(PROJECT, path).length).includes('node_modules'),
    });
  }
  if (existsSync(program)) renameSync(program, old);
  renameSync(fresh, program);
  rmSync(old, { recursive: true, force: true });
};

const shellQuoted = (text: string): string => `'${text.replaceAll("'", "'\\''")}'`;

const launcher = (program: string, entry: string): string =>
  [
    '#!/bin/sh',
    `exec ${shellQuoted(realpathSync(process.execPath))} ${shellQuoted(join(program, entry))} "$@"`,
    '',
  ].join('\n');

const isThere = (path: string): boolean => lstatSync(path, { throwIfNoEntry: false }) !== undefined;

/** The helper where mount(8) finds it, for a prefix of the system. */
const needsLink = (prefix: string, helper: string): boolean =>
  SYSTEM_PREFIXES.includes(prefix) && realpathSync(dirname(SYSTEM_HELPER)) !== dirname(helper);

const install = (prefix: string): void => {
  const places = placesBelow(prefix);
  copyProgram(places.program);
  place(places.command, launcher(places.program, 'dist/src/cli/main.js'), 0o755);
  place(places.helper, launcher(places.program, 'dist/src/cli/mount-helper.js'), 0o755);
  const unit = (name: string): string =>
    readFileSync(join(PROJECT, 'systemd', name), 'utf8').replaceAll(PREFIX_IN_UNITS, `${prefix}/`);
  place(places.systemUnit, unit('vdiskfs@.service'), 0o644);
  place(places.userUnit, unit('user/vdiskfs@.service'), 0o644);
  for (const [name, path] of Object.entries(places.manuals))
    place(path, readFileSync(join(PROJECT, 'docs/man', name), 'utf8'), 0o644);
  if (needsLink(prefix, places.helper)) {
    rmSync(SYSTEM_HELPER, { force: true });
    symlinkSync(places.helper, SYSTEM_HELPER);
  }
};

const removeEmpty = (directory: string, prefix: string): void => {
  for (let at = directory; at.startsWith(`${prefix}/`); at = dirname(at)) {
    try {
      rmdirSync(at);
    } catch {
      return;
    }
  }
};

const uninstall = (prefix: string): void => {
  const { program, manuals, ...single } = placesBelow(prefix);
  if (needsLink(prefix, single.helper) && isThere(SYSTEM_HELPER)) unlinkSync(SYSTEM_HELPER);
  rmSync(program, { recursive: true, force: true });
  removeEmpty(dirname(program), prefix);
  for (const path of [...Object.values(single), ...Object.values(manuals)]) {
    rmSync(path, { force: true });
    removeEmpty(dirname(path), prefix);
  }
};

const main = (): void => {
  const { values } = parseArgs({
    options: {
      prefix: { type: 'string', default: DEFAULT_PREFIX },
      uninstall: { type: 'boolean', default: false },
    },
  });
  const prefix = resolve(values.prefix);
  if (!/^\/[\w./+@-]+$/.test(prefix)) {
    process.stderr.write(
      `install-system: ${prefix}: a prefix has no blanks or special characters\n`,
    );
    process.exit(1);
  }
  if (values.uninstall) uninstall(prefix);
  else install(prefix);
  process.stdout.write(
    `vdiskfs is ${values.uninstall ? 'removed from' : 'installed below'} ${prefix}\n`,
  );
};

main();
