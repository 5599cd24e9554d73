/** The options of a libfuse 2 mount. Pure. */

/** libfuse's buffer in fuse-native holds 1,023 bytes of options. */
const MAX_SOURCE_BYTES = 512;

export interface MountOptions {
  /** SOURCE, as /proc/mounts shows it. */
  readonly source: string;
  readonly readOnly: boolean;
  readonly allowOther: boolean;
}

/**
 * The argument with `-o` in front. `big_writes`: writes of 128 KiB instead of 4; `auto_cache`: the kernel keeps its
 * pages at an open as long as size and time of the file are what they were.
 */
export const mountOptions = (options: MountOptions): string => {
  const words = [
    'subtype=vdiskfs',
    `fsname=${escaped(shortened(options.source))}`,
    'default_permissions',
    'big_writes',
    'auto_cache',
    ...(options.allowOther ? ['allow_other'] : []),
    ...(options.readOnly ? ['ro'] : []),
  ];
  return `-o${words.join(',')}`;
};

const shortened = (source: string): string => {
  const bytes = Buffer.from(source);
  return bytes.length <= MAX_SOURCE_BYTES ? source : `…${bytes.subarray(-256).toString()}`;
};

// A comma in a path would end the word, and what follows would be an option.
const escaped = (text: string): string => text.replaceAll('\\', '\\\\').replaceAll(',', '\\,');
