/** The names of views: pure rules, no file system. */

/** A file to be named. */
export interface Nameable {
  readonly fileName: string;
  /** `NAME` of `NAME=FILE`: the view is `NAME.raw` whatever the file is called. Null without one. */
  readonly declaredName: string | null;
  /** The name of an internal snapshot, null for the active layer. */
  readonly snapshot: string | null;
  /** The name that an open view has and keeps; null for one that may be renamed. */
  readonly kept: string | null;
}

/** Of a file name, in bytes of UTF-8 (NAME_MAX). */
export const MAX_NAME_BYTES = 255;

/**
 * The name of each item, in the order given: `<name without its last extension>.raw`; where two would get the same,
 * both get `<full file name>.raw`, but an item that keeps a name, or whose name was declared, does not give it up. What
 * still clashes (the same file name in two sources) or is too long is numbered, the first one in order staying as it
 * is. Null for what cannot be named at all.
 */
export const assignNames = (items: readonly Nameable[]): (string | null)[] => {
  const names = new Array<string | null>(items.length).fill(null);
  const taken = new Set<string>();
  const settle = (index: number, name: string): boolean => {
    if (taken.has(name) || Buffer.byteLength(name) > MAX_NAME_BYTES) return false;
    taken.add(name);
    names[index] = name;
    return true;
  };
  items.forEach((item, index) => {
    if (item.kept !== null) settle(index, item.kept);
  });
  items.forEach((item, index) => {
    if (names[index] === null && item.declaredName !== null) settle(index, shortName(item));
  });
  const demand = countShortNames(items, names);
  items.forEach((item, index) => {
    if (names[index] === null && demand.get(shortName(item)) === 1) settle(index, shortName(item));
  });
  items.forEach((item, index) => {
    if (names[index] === null && !settle(index, longName(item)))
      settleNumbered(item, index, settle);
  });
  return names;
};

/** How many items that have no name yet ask for each short name. */
const countShortNames = (
  items: readonly Nameable[],
  names: readonly (string | null)[],
): ReadonlyMap<string, number> => {
  const demand = new Map<string, number>();
  items.forEach((item, index) => {
    if (names[index] !== null) return;
    const name = shortName(item);
    demand.set(name, (demand.get(name) ?? 0) + 1);
  });
  return demand;
};

/** Bounds the search: so many files of one name come from no person. */
const MAX_NUMBER = 10_000;

const settleNumbered = (
  item: Nameable,
  index: number,
  settle: (index: number, name: string) => boolean,
): void => {
  const stems = [longName(item), shortName(item)].map((name) => name.slice(0, -'.raw'.length));
  for (let number = 2; number <= MAX_NUMBER; number++) {
    if (stems.some((stem) => settle(index, `${stem}.${number}.raw`))) return;
  }
};

const shortName = (item: Nameable): string => {
  return viewName(item.declaredName ?? withoutExtension(item.fileName), item.snapshot);
};

const longName = (item: Nameable): string => viewName(item.fileName, item.snapshot);

const viewName = (stem: string, snapshot: string | null): string =>
  `${encodeName(snapshot === null ? stem : `${stem}@${snapshot}`)}.raw`;

const withoutExtension = (fileName: string): string => {
  const dot = fileName.lastIndexOf('.');
  return dot > 0 ? fileName.slice(0, dot) : fileName;
};

// A file name holds anything but these two. `%` itself stays as it is: a name is shown, never decoded.
const encodeName = (name: string): string => name.replaceAll('/', '%2F').replaceAll('\0', '%00');
