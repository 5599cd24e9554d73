/**
 * Views that are taken away for the time of a job: of what it copies to, and of the layers that it changes. Nobody opens them
 * meanwhile; a scan shows them again.
 */
import type { EntryTable } from './entry-table.ts';
import { type LayerClaim, refuseUsedLayers } from './layer-claim.ts';
import type { Listing } from './listing.ts';
import { Reservations, refuseLayer, refuseUsed } from './reservations.ts';
import type { ScanSchedule } from './scan-schedule.ts';

export class WithdrawnViews {
  readonly #table: EntryTable;
  readonly #scans: ScanSchedule;
  readonly #reservations = new Reservations();

  constructor(table: EntryTable, scans: ScanSchedule) {
    this.#table = table;
    this.#scans = scans;
  }

  /** What is left of a listing. */
  apply(listing: Listing): Listing {
    return this.#reservations.apply(listing);
  }

  /**
   * Nobody has a view of this file (real path) until the returned function is called: a job writes it. Errors: EBUSY while
   * somebody uses the view that it has, or another image is based on it.
   */
  async reserve(path: string, reason: string): Promise<() => Promise<void>> {
    await this.#scans.refresh();
    const entry = this.#table.images.find(({ host }) => host.path === path) ?? null;
    if (entry !== null) refuseUsed(entry);
    refuseLayer(path, this.#table.images);
    const end = this.#reservations.add(path, reason);
    await this.#scans.rescanNow();
    await entry?.dispose();
    return async () => {
      end();
      await this.#scans.rescanNow();
    };
  }

  /**
   * The layers below an image have no views until the returned function is called: a commit changes them. Errors: those of
   * `refuseUsedLayers`.
   */
  async claimLayers(claim: LayerClaim, reason: string): Promise<() => Promise<void>> {
    await this.#scans.refresh();
    refuseUsedLayers(claim, this.#table.images);
    const { paths, image } = claim;
    const layers = this.#table.images.filter((e) => e !== image && paths.includes(e.host.path));
    const ends = paths.map((path) => this.#reservations.add(path, reason, image.key));
    await this.#scans.rescanNow();
    for (const layer of layers) await layer.dispose();
    return async () => {
      for (const end of ends) end();
      await this.#scans.rescanNow();
    };
  }
}
