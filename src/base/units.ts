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
/** Index of a cluster of the guest's address space: guest offset >> cluster bits. */
export type GuestCluster = Unit<'GuestCluster'>;
/** Index of a cluster of a host file: host offset >> cluster bits. */
export type HostCluster = Unit<'HostCluster'>;

/** Largest offset that this program handles exactly: 2^53 - 1. */
export const MAX_OFFSET = Number.MAX_SAFE_INTEGER;

export const guestOffset = (bytes: number): GuestOffset => bytes as GuestOffset;
export const hostOffset = (bytes: number): HostOffset => bytes as HostOffset;
export const guestCluster = (index: number): GuestCluster => index as GuestCluster;
export const hostCluster = (index: number): HostCluster => index as HostCluster;

/** The cluster that holds a guest offset. Division, not shift: offsets pass 2^32. */
export const clusterOfGuestOffset = (offset: GuestOffset, clusterBytes: number): GuestCluster =>
  Math.floor(offset / clusterBytes) as GuestCluster;

/** First byte of a guest cluster. */
export const guestOffsetOfCluster = (cluster: GuestCluster, clusterBytes: number): GuestOffset =>
  (cluster * clusterBytes) as GuestOffset;

/** The host cluster that holds a host offset. */
export const clusterOfHostOffset = (offset: HostOffset, clusterBytes: number): HostCluster =>
  Math.floor(offset / clusterBytes) as HostCluster;

/** First byte of a host cluster. */
export const hostOffsetOfCluster = (cluster: HostCluster, clusterBytes: number): HostOffset =>
  (cluster * clusterBytes) as HostOffset;
