package main

import (
	"fmt"
	"log/slog"
	"math"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"banger/internal/host"
	"banger/internal/value"
	"banger/vmm"
)

// autoQuota stands for an amount that depends on the host, until completeQuotas.
const autoQuota = -1

// leastCPUs is the least built-in quota of CPUs, for hosts with few.
const leastCPUs = 8

// countQuota and bytesQuota are limits of each user. They are numbers, or the words max and auto.
type (
	countQuota int64
	bytesQuota int64
)

func (n *countQuota) UnmarshalTOML(v any) error { return parseQuota(vmm.QuotaVMs, v, (*int64)(n)) }
func (n *bytesQuota) UnmarshalTOML(v any) error { return parseQuota(vmm.QuotaDisk, v, (*int64)(n)) }
func (n countQuota) String() string             { return quotaText(int64(n)) }
func (n bytesQuota) String() string             { return quotaText(int64(n)) }

func parseQuota(q vmm.Quota, v any, to *int64) error {
	if v == "auto" {
		*to = autoQuota
		return nil
	}
	n, err := q.Parse(fmt.Sprint(v))
	*to = n
	return err
}

func quotaText(n int64) string {
	switch n {
	case autoQuota:
		return "auto"
	case vmm.NoQuota:
		return value.Max
	}
	return strconv.FormatInt(n, 10)
}

// ratio is a positive number, or infinite for the word max.
type ratio float64

func (r *ratio) UnmarshalTOML(v any) error {
	n := math.NaN()
	switch v := v.(type) {
	case int64:
		n = float64(v)
	case float64:
		n = v
	case string:
		if v == value.Max {
			n = math.Inf(1)
		}
	}
	if !(n > 0) {
		return fmt.Errorf("%v is neither a number above 0, as 1.5, nor \"max\"", v)
	}
	*r = ratio(n)
	return nil
}

func (r ratio) String() string {
	if math.IsInf(float64(r), 1) {
		return value.Max
	}
	return strconv.FormatFloat(float64(r), 'f', -1, 64)
}

// completeQuotas replaces the words auto by shares of the host: twice its CPUs, and half of its
// memory and of the file system of the state directory.
func (c *config) completeQuotas(log *slog.Logger, state string, memory int64) {
	if c.QuotaCPUs == autoQuota {
		c.QuotaCPUs = countQuota(max(leastCPUs, 2*runtime.NumCPU()))
	}
	if c.QuotaMemory == autoQuota {
		c.QuotaMemory = bytesQuota(memory / 2)
	}
	if c.QuotaDisk == autoQuota {
		var st unix.Statfs_t
		if err := unix.Statfs(state, &st); err != nil {
			log.Warn("users have no quota of disk: set quota_disk", "err", err)
			c.QuotaDisk = bytesQuota(vmm.NoQuota)
			return
		}
		c.QuotaDisk = bytesQuota(int64(st.Blocks) / 2 * st.Bsize)
	}
}

// amounts returns the limits of users without a rule.
func (c *config) amounts() *vmm.Amounts {
	return &vmm.Amounts{vmm.QuotaVMs: int64(c.QuotaVMs), vmm.QuotaCPUs: int64(c.QuotaCPUs),
		vmm.QuotaMemory: int64(c.QuotaMemory), vmm.QuotaDisk: int64(c.QuotaDisk)}
}

// overcommitted returns how many bytes of the host's memory running VMs may use.
func (c *config) overcommitted(memory int64) int64 {
	if n := float64(c.OvercommitMemory) * float64(memory); n < math.MaxInt64 {
		return max(1, int64(n))
	}
	return vmm.NoQuota
}

// hostMemory returns the memory that the host has for the daemon and its VMs, in bytes.
func hostMemory(log *slog.Logger) int64 {
	n, err := host.Memory("/proc")
	if err != nil {
		log.Warn("the memory of running VMs is not counted against the host's", "err", err)
		return vmm.NoQuota
	}
	return n
}
