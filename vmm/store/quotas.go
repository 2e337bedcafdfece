package store

import (
	"context"
	"fmt"

	"banger/vmm"
)

// Quotas implements vmm.Store.
func (s *Store) Quotas(ctx context.Context) ([]vmm.QuotaRule, error) {
	var got []vmm.QuotaRule
	if err := s.do(ctx, func(ctx context.Context, w *writer) (err error) {
		got, err = w.allQuotas(ctx)
		return err
	}); err != nil {
		return nil, fmt.Errorf("cannot load the rules of quotas: %w", err)
	}
	return got, nil
}

// SetQuota implements vmm.Store.
func (s *Store) SetQuota(ctx context.Context, r vmm.QuotaRule) error {
	if err := s.do(ctx, func(ctx context.Context, w *writer) error {
		_, err := w.setQuota.ExecContext(ctx, r.UID, r.Quota, r.Most)
		return err
	}); err != nil {
		return fmt.Errorf("cannot record a quota: %w", err)
	}
	return nil
}

// DeleteQuota implements vmm.Store.
func (s *Store) DeleteQuota(ctx context.Context, uid int64, quota string) error {
	if err := s.do(ctx, func(ctx context.Context, w *writer) error {
		return found(w.dropQuota.ExecContext(ctx, uid, quota))
	}); err != nil {
		return fmt.Errorf("cannot forget a quota: %w", err)
	}
	return nil
}

func (w *writer) allQuotas(ctx context.Context) ([]vmm.QuotaRule, error) {
	rows, err := w.quotas.QueryContext(ctx)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []vmm.QuotaRule
	for rows.Next() {
		var r vmm.QuotaRule
		if err := rows.Scan(&r.UID, &r.Quota, &r.Most); err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, rows.Err()
}
