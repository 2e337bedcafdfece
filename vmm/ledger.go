package vmm

import (
	"fmt"
	"sync"
)

// charge is what one VM counts for. It is guarded by the ledger's mu. The zero charge is that of a
// VM that does not exist yet.
type charge struct {
	bill
	saved int64 // bytes of its snapshots
}

// bill is what a VM counts for by its record.
type bill struct {
	uid     uint32
	amounts Amounts
	host    int64 // bytes of the host's memory that its VMM may use
}

// total returns the amounts with those of the snapshots.
func (c *charge) total() Amounts {
	all := c.amounts
	all[QuotaDisk] += c.saved
	return all
}

// hold is what is counted beside the charges: what a change would add, while it is made durable.
// The zero hold counts nothing.
type hold bill

// ledger keeps the sums of what the VMs count for, so that a change needs no look at other VMs.
// It is consistent at any moment: of two changes that fit alone, one is refused.
type ledger struct {
	fallback Amounts // of uids without a rule, by the configuration; immutable, as is most
	most     int64   // bytes of the host's memory that all running VMs may use; NoQuota for no limit
	free     uint32  // the daemon's own uid, which has no limit but by a rule; immutable
	user     func(uid uint32) uint32

	mu    sync.Mutex // guards what follows, and every charge
	rules map[int64]map[Quota]int64
	used  map[uint32]*Amounts // of uids that use something
	host  int64               // bytes of the host's memory that running VMs may use
}

func newLedger(o *Options) *ledger {
	l := &ledger{most: o.HostMemory, free: o.UID, user: o.User,
		rules: make(map[int64]map[Quota]int64), used: make(map[uint32]*Amounts)}
	if l.user == nil {
		l.user = func(uid uint32) uint32 { return uid }
	}
	if l.most == 0 {
		l.most = NoQuota
	}
	for q := range l.fallback {
		l.fallback[q] = NoQuota
		if o.Quotas != nil {
			l.fallback[q] = o.Quotas[q]
		}
	}
	return l
}

// limitLocked returns a uid's limit.
func (l *ledger) limitLocked(uid int64, q Quota) int64 {
	if most, ok := l.rules[uid][q]; ok {
		return most
	}
	if uid == 0 || uid == int64(l.free) {
		return NoQuota
	}
	if most, ok := l.rules[EveryUID][q]; ok {
		return most
	}
	return l.fallback[q]
}

// usedLocked returns the sums of a uid, which the caller may change.
func (l *ledger) usedLocked(uid uint32) *Amounts {
	sum := l.used[uid]
	if sum == nil {
		sum = new(Amounts)
		l.used[uid] = sum
	}
	return sum
}

// addLocked adds sign times the amounts to a uid's sums, and forgets a uid that uses nothing.
func (l *ledger) addLocked(uid uint32, amounts Amounts, host, sign int64) {
	sum := l.usedLocked(uid)
	for q, n := range amounts {
		sum[q] += sign * n
	}
	l.host += sign * host
	if *sum == (Amounts{}) {
		delete(l.used, uid)
	}
}

// claim counts what b adds to a VM's charge until settle or drop, if that is allowed. What is no
// more than before is never refused. ErrQuota, ErrNoMemory.
func (l *ledger) claim(c *charge, b bill) (hold, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := *c
	h := hold(b)
	if b.uid == before.uid {
		for q := range h.amounts {
			h.amounts[q] = max(0, b.amounts[q]-before.amounts[q])
		}
	} else {
		h.amounts[QuotaDisk] = saturating(h.amounts[QuotaDisk], before.saved)
	}
	h.host = max(0, b.host-before.host)
	return h, l.holdLocked(&h)
}

// claimSaved counts what a snapshot of that many bytes adds to a VM's charge. ErrQuota.
func (l *ledger) claimSaved(c *charge, bytes int64) (hold, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := hold{uid: c.uid}
	h.amounts[QuotaDisk] = max(0, bytes-c.saved)
	return h, l.holdLocked(&h)
}

// holdLocked counts h, or makes it a hold of nothing and returns why.
func (l *ledger) holdLocked(h *hold) error {
	used := Amounts{}
	if sum := l.used[h.uid]; sum != nil {
		used = *sum
	}
	for _, q := range Quotas() {
		most := l.limitLocked(int64(h.uid), q)
		if n := h.amounts[q]; n > 0 && n > most-used[q] {
			err := overQuota(h.uid, q, n, used[q], most)
			*h = hold{}
			return err
		}
	}
	if h.host > 0 && h.host > l.most-l.host {
		err := noRoom(h.host, l.host, l.most)
		*h = hold{}
		return err
	}
	l.addLocked(h.uid, h.amounts, h.host, 1)
	return nil
}

// settle makes b the VM's charge by its record and drops the hold.
func (l *ledger) settle(c *charge, b bill, h hold) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.addLocked(h.uid, h.amounts, h.host, -1)
	l.addLocked(c.uid, c.total(), c.host, -1)
	c.bill = b
	l.addLocked(c.uid, c.total(), c.host, 1)
}

// settleSaved makes bytes what the VM's snapshots count for.
func (l *ledger) settleSaved(c *charge, bytes int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.addLocked(c.uid, c.total(), c.host, -1)
	c.saved = bytes
	l.addLocked(c.uid, c.total(), c.host, 1)
}

// drop counts the hold no longer.
func (l *ledger) drop(h hold) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.addLocked(h.uid, h.amounts, h.host, -1)
}

// forget counts the VM no longer.
func (l *ledger) forget(c *charge) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.addLocked(c.uid, c.total(), c.host, -1)
	*c = charge{}
}

// alone refuses a setting that exceeds the owner's limit without any other VM. Only a start would
// count it otherwise.
func (l *ledger) alone(uid uint32, old, c *Config) error {
	uid = l.user(uid)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, x := range []struct {
		q        Quota
		old, now int64
	}{
		{QuotaCPUs, int64(old.CPUs), int64(c.CPUs)},
		{QuotaMemory, old.Memory, c.Memory},
	} {
		if most := l.limitLocked(int64(uid), x.q); x.now != x.old && x.now > most {
			return fmt.Errorf("%d %s are more than the %d that all VMs of uid %d may have: "+
				"write less, or root writes more to quota/%d/%s: %w",
				x.now, quotas[x.q].unit, most, uid, uid, x.q, ErrQuota)
		}
	}
	return nil
}

// overdraft is the refusal of a change by the ledger. It wraps ErrQuota or ErrNoMemory.
type overdraft struct{ error }

func (o *overdraft) Unwrap() error { return o.error }

// overQuota is the overdraft of a change that needs n more than is left.
func overQuota(uid uint32, q Quota, n, used, most int64) error {
	d := &quotas[q]
	return &overdraft{fmt.Errorf("uid %d has %d of %d %s%s, and this needs %d more: "+
		"%s, or root writes more to quota/%d/%s: %w",
		uid, used, most, d.unit, d.of, n, d.cure, uid, d.name, ErrQuota)}
}

// saturating returns a+b, which are not negative, or NoQuota if that is less.
func saturating(a, b int64) int64 {
	if a > NoQuota-b {
		return NoQuota
	}
	return a + b
}

// full reports whether no other uid may have a rule.
func (l *ledger) full(uid int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, has := l.rules[uid]
	return !has && len(l.rules) >= maxQuotaUIDs
}

func (l *ledger) setRule(uid int64, q Quota, most int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rules[uid] == nil {
		l.rules[uid] = make(map[Quota]int64)
	}
	l.rules[uid][q] = most
}

func (l *ledger) dropRule(uid int64, q Quota) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.rules[uid], q)
	if len(l.rules[uid]) == 0 {
		delete(l.rules, uid)
	}
}
