/** What an image file says of itself and of the files that it names. */

/** What an image's header says about its backing file. */
export interface BackingLink {
  readonly filename: string;
  /** Declared format; null when the image does not say (it is probed then). */
  readonly format: string | null;
}

/** A file besides its own that an image's header names, and that holds bytes of its guest. */
export interface DataFileLink {
  readonly filename: string;
  /** Declared format; null probes. */
  readonly format: string | null;
}

/**
 * What can be told from an image alone, opening no other file (`info`, directory scans).
 */
export interface ImageDescription {
  readonly format: string;
  /** Bytes the guest sees; null where the header does not say: then they are those of the first data file. */
  readonly virtualSizeBytes: number | null;
  readonly clusterBytes: number | null;
  readonly backing: BackingLink | null;
  /** Other files that hold the guest's bytes (external data file, add-cow's image file). */
  readonly dataFiles: readonly DataFileLink[];
  readonly dirty: boolean;
  readonly corrupt: boolean;
  readonly encrypted: boolean;
  /** Why an image of this kind is only read; null when it can be written. */
  readonly readOnlyReason?: string | null;
  readonly compressed: boolean;
  /** Snapshot ids and names, for views `NAME@SNAPSHOT`. */
  readonly snapshots: readonly SnapshotDescription[];
  /** `format-specific` of `qemu-img info --output=json`: its `data` object, or null for none. */
  readonly formatSpecific: Readonly<Record<string, unknown>> | null;
}

/** One record of `snapshots` of `qemu-img info --output=json`. */
export interface SnapshotDescription {
  readonly id: string;
  readonly name: string;
  readonly virtualSizeBytes: number;
  readonly vmStateBytes: number;
  readonly dateSeconds: number;
  readonly dateNanoseconds: number;
  readonly vmClockNanoseconds: number;
  /** Instructions executed; null where the image does not record them. */
  readonly icount?: number | null;
}
