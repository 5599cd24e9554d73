/**
 * Branded numbers: the units that must never be mixed. All are plain doubles at run time, exact up to
 * 2^53; the only places where a number becomes a unit are the functions of this file.
 */

declare const unit: unique symbol;
type Unit<Name extends string> = number & { readonly [unit]: Name };

/** Bytes from the start of what a guest (or the reader of a node) sees. */
export type GuestOffset = Unit<'GuestOffset'>;
/** Bytes from the start of a host file. */
export type HostOffset = Unit<'HostOffset'>;
/** Index of a cluster of a host file: host offset >> cluster bits. */
export type HostCluster = Unit<'HostCluster'>;

/** Largest offset that this program handles exactly: 2^53 - 1. */
export const MAX_OFFSET = Number.MAX_SAFE_INTEGER;

export const guestOffset = (bytes: number): GuestOffset => bytes as GuestOffset;
export const hostOffset = (bytes: number): HostOffset => bytes as HostOffset;
export const hostCluster = (index: number): HostCluster => index as HostCluster;

/** The host cluster that holds a host offset. Division, not shift: offsets pass 2^32. */
export const clusterOfHostOffset = (offset: HostOffset, clusterBytes: number): HostCluster =>
  Math.floor(offset / clusterBytes) as HostCluster;

/** First byte of a host cluster. */
export const hostOffsetOfCluster = (cluster: HostCluster, clusterBytes: number): HostOffset =>
  (cluster * clusterBytes) as HostOffset;
