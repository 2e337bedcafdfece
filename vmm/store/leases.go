package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"

	"banger/vmm"
)

// Lease implements vmm.Store. It replaces a lease from another prefix.
func (s *Store) Lease(
	ctx context.Context, serial uint64, prefix netip.Prefix, gateway netip.Addr,
) (netip.Addr, error) {
	var got netip.Addr
	if err := s.do(ctx, func(ctx context.Context, w *writer) (err error) {
		got, err = w.lease(ctx, serial, prefix.Masked(), gateway)
		return err
	}); err != nil {
		return netip.Addr{}, fmt.Errorf(
			"cannot lease an address in %s to the VM with serial %d: %w", prefix, serial, err)
	}
	return got, nil
}

func (w *writer) lease(
	ctx context.Context, serial uint64, prefix netip.Prefix, gateway netip.Addr,
) (netip.Addr, error) {
	var one int
	if err := w.exists.QueryRowContext(ctx, int64(serial)).Scan(&one); err != nil {
		return netip.Addr{}, err
	}
	var has []byte
	switch err := w.leaseOf.QueryRowContext(ctx, int64(serial)).Scan(&has); {
	case err == nil:
		if a, ok := netip.AddrFromSlice(has); ok && usable(a, prefix, gateway) {
			return a, nil
		}
	case !errors.Is(err, sql.ErrNoRows):
		return netip.Addr{}, err
	}
	free, err := w.lowestFree(ctx, serial, prefix, gateway)
	if err != nil {
		return netip.Addr{}, err
	}
	if _, err := w.leaseTake.ExecContext(ctx, int64(serial), free.AsSlice()); err != nil {
		return netip.Addr{}, err
	}
	return free, nil
}

// lowestFree returns the lowest usable address that no other VM leases.
func (w *writer) lowestFree(
	ctx context.Context, serial uint64, prefix netip.Prefix, gateway netip.Addr,
) (netip.Addr, error) {
	rows, err := w.leases.QueryContext(ctx, int64(serial))
	if err != nil {
		return netip.Addr{}, err
	}
	defer rows.Close()
	next := prefix.Addr().Next()
	if next == gateway {
		next = next.Next()
	}
	for rows.Next() {
		var b []byte
		if err := rows.Scan(&b); err != nil {
			return netip.Addr{}, err
		}
		taken, _ := netip.AddrFromSlice(b)
		if taken == next {
			if next = next.Next(); next == gateway {
				next = next.Next()
			}
		} else if next.Less(taken) {
			break
		}
	}
	if err := rows.Err(); err != nil {
		return netip.Addr{}, err
	}
	if !usable(next, prefix, gateway) {
		return netip.Addr{}, fmt.Errorf("%w: every address is leased", vmm.ErrNoSpace)
	}
	return next, nil
}

// usable reports whether a VM may lease a: an address of the prefix, but not the network's, the
// gateway's or the broadcast address.
func usable(a netip.Addr, prefix netip.Prefix, gateway netip.Addr) bool {
	return prefix.Contains(a) && a != prefix.Addr() && a != gateway &&
		(a.Is6() || prefix.Contains(a.Next()))
}
