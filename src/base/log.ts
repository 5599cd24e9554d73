/**
 * Log lines, one event a line, to stderr: `<level> <subject>: <text>`. Where stderr is journald's stream each
 * line begins with its `<N>` priority instead of the level's name. Never writes secrets or guest data.
 */
import { fstatSync, writeSync } from 'node:fs';

export type LogLevel = 'error' | 'warning' | 'info' | 'debug';

const PRIORITY: Record<LogLevel, number> = { error: 3, warning: 4, info: 6, debug: 7 };

export interface Log {
  error(subject: string, text: string): void;
  warning(subject: string, text: string): void;
  info(subject: string, text: string): void;
  debug(subject: string, text: string): void;
}

export interface LogOptions {
  /** Lines less urgent than this are dropped. */
  readonly level: LogLevel;
  /** Takes one finished line with its newline; stderr when not given. */
  readonly write?: (line: string) => void;
  readonly journald?: boolean;
}

// Control characters in a file name of the guest's choosing must not forge lines or drive a terminal.
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const CONTROL = /[\u0000-\u001f\u007f-\u009f]/g;

/** Text with its control characters escaped, safe for one line of a terminal. */
export const printable = (text: string): string =>
  text.replace(CONTROL, (c) => `\\x${c.charCodeAt(0).toString(16).padStart(2, '0')}`);

const writeToStderr = (line: string): void => {
  try {
    writeSync(2, line);
  } catch {
    // A log that cannot be written (closed pipe, full disk) must not end the mount.
  }
};

/** JOURNAL_STREAM names device and inode of journald's stream: a child whose stderr was redirected inherits it too. */
export const isJournalStream = (named: string | undefined, descriptor: number): boolean => {
  if (named === undefined) return false;
  try {
    const { dev, ino } = fstatSync(descriptor, { bigint: true });
    return named === `${dev}:${ino}`;
  } catch {
    return false;
  }
};

export const createLog = (options: LogOptions): Log => {
  const journald = options.journald ?? isJournalStream(process.env['JOURNAL_STREAM'], 2);
  const write = options.write ?? writeToStderr;
  const emit = (level: LogLevel, subject: string, text: string): void => {
    if (PRIORITY[level] > PRIORITY[options.level]) return;
    const head = journald ? `<${PRIORITY[level]}>` : `${level} `;
    write(`${head}${printable(subject)}: ${printable(text)}\n`);
  };
  return {
    error: (subject, text) => emit('error', subject, text),
    warning: (subject, text) => emit('warning', subject, text),
    info: (subject, text) => emit('info', subject, text),
    debug: (subject, text) => emit('debug', subject, text),
  };
};

/** For offline commands and tests that look at results, not at lines. */
export const silentLog: Log = createLog({ level: 'error', write: () => undefined });
