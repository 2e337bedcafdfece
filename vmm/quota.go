package vmm

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"banger/internal/value"
)

// Quota is one of the things that a uid has a limited amount of, as the files of quota/UID are
// called.
type Quota int

// The quotas. VMs and disks count whether the VM runs or not, CPUs and memory while it is neither
// stopped nor failed.
const (
	QuotaVMs Quota = iota
	QuotaCPUs
	QuotaMemory // bytes
	QuotaDisk   // bytes that the VM's disks and snapshots may grow to

	quotaCount
)

const (
	// NoQuota is the amount that is written as `max`. No sum exceeds it.
	NoQuota int64 = math.MaxInt64
	// EveryUID stands for the uids that have no rule of their own.
	EveryUID int64 = -1
	// maxQuotaUIDs bounds how many uids have rules. Each may be one without a VM.
	maxQuotaUIDs = 4096
)

// quotas describes each Quota: its file, and how a refusal speaks of it.
var quotas = [quotaCount]struct{ name, help, unit, of, cure string }{
	QuotaVMs: {"vms", "VMs that the user owns, and may own", "VMs", "", "remove one"},
	QuotaCPUs: {"cpus", "CPUs of the user's running VMs", "CPUs",
		" in running VMs", "stop one"},
	QuotaMemory: {"memory", "bytes of memory of the user's running VMs", "bytes of memory",
		" in running VMs", "stop one"},
	QuotaDisk: {"disk", "bytes that the disks of the user's VMs may grow to", "bytes of disk",
		" in VMs and snapshots", "remove one"},
}

// Quotas returns all quotas, in the order of their files.
func Quotas() []Quota { return []Quota{QuotaVMs, QuotaCPUs, QuotaMemory, QuotaDisk} }

// String returns the name of the quota's file.
func (q Quota) String() string { return quotas[q].name }

// Help returns what the quota's file is about.
func (q Quota) Help() string { return quotas[q].help }

// Parse reads an amount, or `max`. Bytes may have a unit. ErrInvalid.
func (q Quota) Parse(text string) (int64, error) {
	switch {
	case text == value.Max:
		return NoQuota, nil
	case q == QuotaMemory || q == QuotaDisk:
		return value.ParseBytes(text)
	}
	return value.ParseUint(text, NoQuota)
}

// Amounts has an amount of each quota.
type Amounts [quotaCount]int64

// QuotaRule is a limit that root has set. It is a plain value.
type QuotaRule struct {
	UID   int64 // or EveryUID
	Quota string
	Most  int64 // NoQuota for none
}

// Quota returns what a uid uses and what it may use, NoQuota for no limit. It does not block.
func (m *Manager) Quota(uid uint32, q Quota) (used, most int64) {
	m.ledger.mu.Lock()
	defer m.ledger.mu.Unlock()
	if sum := m.ledger.used[uid]; sum != nil {
		used = sum[q]
	}
	return used, m.ledger.limitLocked(int64(uid), q)
}

// DefaultQuota returns the limit of uids without a rule of their own. It does not block.
func (m *Manager) DefaultQuota(q Quota) int64 {
	m.ledger.mu.Lock()
	defer m.ledger.mu.Unlock()
	return m.ledger.limitLocked(EveryUID, q)
}

// QuotaUIDs returns the uids that own VMs or have a rule, sorted. It does not block.
func (m *Manager) QuotaUIDs() []uint32 {
	m.ledger.mu.Lock()
	defer m.ledger.mu.Unlock()
	uids := make(map[uint32]bool)
	for uid := range m.ledger.used {
		uids[uid] = true
	}
	for uid := range m.ledger.rules {
		if uid != EveryUID {
			uids[uint32(uid)] = true
		}
	}
	return slices.Sorted(maps.Keys(uids))
}

// HasQuota reports whether QuotaUIDs has the uid. It does not block.
func (m *Manager) HasQuota(uid uint32) bool {
	m.ledger.mu.Lock()
	defer m.ledger.mu.Unlock()
	return m.ledger.used[uid] != nil || m.ledger.rules[int64(uid)] != nil
}

// SetQuota makes most the limit of a uid, or of EveryUID. What VMs use already stays. It returns
// when that is durable. ErrNoSpace if too many uids have rules.
func (m *Manager) SetQuota(ctx context.Context, uid int64, q Quota, most int64) error {
	return m.rule(ctx, func(ctx context.Context) error {
		if m.ledger.full(uid) {
			return fmt.Errorf("%d uids have rules: write default to those of some: %w",
				maxQuotaUIDs, ErrNoSpace)
		}
		if err := m.o.Store.SetQuota(ctx, QuotaRule{uid, q.String(), most}); err != nil {
			return err
		}
		m.ledger.setRule(uid, q, most)
		return nil
	})
}

// DropQuota makes a uid follow the limit of EveryUID again, and EveryUID the configuration. It
// returns when that is durable.
func (m *Manager) DropQuota(ctx context.Context, uid int64, q Quota) error {
	return m.rule(ctx, func(ctx context.Context) error {
		err := m.o.Store.DeleteQuota(ctx, uid, q.String())
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		m.ledger.dropRule(uid, q)
		return nil
	})
}

// rule runs one change of the rules at a time, so that the records have what the ledger has.
func (m *Manager) rule(ctx context.Context, do func(context.Context) error) error {
	select {
	case m.ruling <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-m.ruling }()
	return do(context.WithoutCancel(ctx))
}

// loadQuotas takes the rules of the records.
func (m *Manager) loadQuotas(ctx context.Context) error {
	rules, err := m.o.Store.Quotas(ctx)
	for _, r := range rules {
		for _, q := range Quotas() {
			if q.String() == r.Quota {
				m.ledger.setRule(r.UID, q, r.Most)
			}
		}
	}
	return err
}
