/** The `-o` lists of mount(8) and fstab: taken apart, and what in them is no business of ours. */

/** What mount(8) and fstab put there for themselves, beside `x-…` and `X-…`. */
const IGNORED_WORDS = new Set([
  'defaults',
  'auto',
  'noauto',
  'user',
  'nouser',
  'users',
  'owner',
  'noowner',
  'group',
  'nogroup',
  'nofail',
  '_netdev',
  'suid',
  'dev',
  'loud',
  'silent',
  'comment',
  'uhelper',
  'helper',
]);

export interface ListedOption {
  /** With `-` for `_`. */
  readonly name: string;
  /** Null for a word alone. */
  readonly value: string | null;
  /** As it stands in the list. */
  readonly text: string;
}

/** The options of lists in order; a value may stand in double quotes, and then hold commas. */
export const optionsOf = (lists: readonly string[]): readonly ListedOption[] =>
  lists
    .flatMap((list) => list.match(/(?:[^",]|"[^"]*"?)+/g) ?? [])
    .map((text) => {
      const equals = text.indexOf('=');
      const name = (equals < 0 ? text : text.slice(0, equals)).replaceAll('_', '-');
      const value = equals < 0 ? null : text.slice(equals + 1).replaceAll('"', '');
      return { name, value, text };
    });

/** Whether an option is one of mount(8)'s own. */
export const isIgnored = ({ text }: ListedOption): boolean =>
  /^x-/i.test(text) || IGNORED_WORDS.has(text.replace(/=.*/s, ''));
