#!/usr/bin/env node
/**
 * The mount helper that mount(8) calls for `-t vdiskfs`, also from fstab and systemd's mount units:
 *
 *     mount.vdiskfs SOURCE MOUNTPOINT [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]
 *
 * It turns that line into one of `vdiskfs mount`. Here `-f` means "fake": everything is checked, nothing is mounted. The
 * exit statuses are mount(8)'s: 0, 1 for a wrong line, 32 for a mount that failed.
 */
import { spawnSync } from 'node:child_process';
import { statSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { toBlockError } from '../base/block-error.ts';
import { isUrl } from '../block/remote-url.ts';
import { UsageError } from './command.ts';
import { describeFailure } from './failure.ts';
import { wordsOfMountOptions } from './mount-options.ts';

const EXIT = { success: 0, usage: 1, mountFailed: 32 } as const;

interface HelperLine {
  readonly source: string;
  readonly mountpoint: string;
  readonly sloppy: boolean;
  readonly fake: boolean;
  readonly verbose: boolean;
  /** A path like /proc/PID/ns/mnt, of the namespace to mount in. */
  readonly namespace: string | null;
  readonly lists: readonly string[];
}

/** Letters of one word, as getopt(3) takes them: `-sfo ro`, `-oro`. Errors: UsageError. */
const parse = (given: readonly string[]): HelperLine => {
  const flags = new Set<string>();
  const values: Record<string, string[]> = { o: [], N: [], t: [] };
  const paths: string[] = [];
  for (let i = 0; i < given.length; i++) {
    const word = given[i] ?? '';
    if (!word.startsWith('-') || word === '-') {
      paths.push(word);
      continue;
    }
    for (let at = 1; at < word.length; at++) {
      const letter = word[at] ?? '';
      const list = values[letter];
      if (list === undefined) {
        if (!'sfnv'.includes(letter))
          throw new UsageError('is no option of mount.vdiskfs', `-${letter}`);
        flags.add(letter);
        continue;
      }
      const value = word.slice(at + 1) || given[++i];
      if (value === undefined) throw new UsageError('needs a value', `-${letter}`);
      list.push(value);
      break;
    }
  }
  const [source, mountpoint, more] = paths;
  if (source === undefined || mountpoint === undefined || more !== undefined)
    throw new UsageError('a SOURCE and a MOUNTPOINT are needed');
  return {
    source,
    mountpoint,
    sloppy: flags.has('s'),
    fake: flags.has('f'),
    verbose: flags.has('v'),
    namespace: values['N']?.at(-1) ?? null,
    lists: values['o'] ?? [],
  };
};

/** Errors: what mounting there would say first. */
const checkOnly = (line: HelperLine): void => {
  const source = line.source.replace(/^[^/=]+=/, '');
  for (const path of isUrl(source) ? [line.mountpoint] : [source, line.mountpoint]) {
    try {
      statSync(path);
    } catch (error) {
      throw toBlockError(error, { op: 'mount', path });
    }
  }
};

const main = (given: readonly string[]): number => {
  try {
    const line = parse(given);
    const words = wordsOfMountOptions(line.lists, { sloppy: line.sloppy });
    if (line.fake) {
      checkOnly(line);
      return EXIT.success;
    }
    const program = fileURLToPath(new URL('./main.js', import.meta.url));
    const enter = line.namespace === null ? [] : ['nsenter', `--mount=${line.namespace}`, '--'];
    const paths = [line.source, line.mountpoint].map((p) => (p.startsWith('-') ? `./${p}` : p));
    const command = [...enter, process.execPath, program, 'mount', ...words, ...paths];
    const [first = '', ...rest] = command;
    const { status, error } = spawnSync(first, rest, { stdio: 'inherit' });
    if (error !== undefined) throw toBlockError(error, { op: 'mount', path: first });
    if (status === 0 && line.verbose)
      process.stdout.write(`mount.vdiskfs: ${line.source} mounted on ${line.mountpoint}.\n`);
    return status === 0 ? EXIT.success : status === 2 ? EXIT.usage : EXIT.mountFailed;
  } catch (thrown) {
    process.stderr.write(
      `${describeFailure(thrown, 'mount').replace(/^vdiskfs/, 'mount.vdiskfs')}\n`,
    );
    return thrown instanceof UsageError ? EXIT.usage : EXIT.mountFailed;
  }
};

process.exitCode = main(process.argv.slice(2));
