package vmm

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"banger/internal/value"
)

// Limits are what a VM may take of its host. The zero value of each field is no limit. The formats
// are those of cgroup v2 (Documentation/admin-guide/cgroup-v2.rst of Linux).
type Limits struct {
	CPUMax    CPUMax
	CPUWeight Weight
	MemoryMax int64 // bytes of the VMM, 0 for no limit
	PIDsMax   int64 // threads of the VMM, 0 for no limit
	IOMax     IOMax
	NetMax    NetMax
}

// CPUMax is CPU time: Quota in each Period. Quota 0 is no limit, and Period 0 the usual one.
type CPUMax struct{ Quota, Period time.Duration }

// Bounds of a CPUMax, as the kernel has them.
const (
	usualPeriod = 100 * time.Millisecond
	leastPeriod = time.Millisecond // also the least quota
	mostPeriod  = time.Second
)

// Each returns the period.
func (c CPUMax) Each() time.Duration {
	if c.Period == 0 {
		return usualPeriod
	}
	return c.Period
}

// String returns the text of the file cpu.max, without an end of line.
func (c CPUMax) String() string {
	quota := value.Max
	if c.Quota != 0 {
		quota = strconv.FormatInt(c.Quota.Microseconds(), 10)
	}
	return quota + " " + strconv.FormatInt(c.Each().Microseconds(), 10)
}

// parse reads MAX and, where it follows, PERIOD, in microseconds. Otherwise the period stays.
func (c CPUMax) parse(text string) (CPUMax, error) {
	words := strings.Fields(text)
	bad := fmt.Errorf("%.64q is not a quota of %d to %d and a period of %d to %d microseconds, "+
		"such as 50000 100000 or max: %w", text, leastPeriod.Microseconds(),
		maxCPUs*mostPeriod.Microseconds(), leastPeriod.Microseconds(),
		mostPeriod.Microseconds(), ErrInvalid)
	if len(words) == 0 || len(words) > 2 {
		return c, bad
	}
	times := []*time.Duration{&c.Quota, &c.Period}
	most := []time.Duration{maxCPUs * mostPeriod, mostPeriod}
	for i, word := range words {
		if i == 0 && word == value.Max {
			c.Quota = 0
			continue
		}
		n, err := value.ParseUint(word, most[i].Microseconds())
		*times[i] = time.Duration(n) * time.Microsecond
		if err != nil || *times[i] < leastPeriod {
			return c, bad
		}
	}
	if c.Period == usualPeriod {
		c.Period = 0
	}
	return c, nil
}

// Weight is a share of CPU time among VMs that compete for it, 1 to 10000. 0 stands for 100.
type Weight int

const (
	usualWeight = 100
	mostWeight  = 10000
)

// Value returns the weight from 1 to 10000.
func (w Weight) Value() int {
	if w == 0 {
		return usualWeight
	}
	return int(w)
}

func formatWeight(w Weight) string { return strconv.Itoa(w.Value()) }

func parseWeight(s string) (Weight, error) {
	n, err := value.ParseUint(s, mostWeight)
	if err != nil || n < 1 {
		return 0, fmt.Errorf("%.64q is not a weight from 1 to %d: %w", s, mostWeight, ErrInvalid)
	}
	if n == usualWeight {
		n = 0
	}
	return Weight(n), nil
}

// formatMax returns a number, or max for 0.
func formatMax(n int64) string {
	if n == 0 {
		return value.Max
	}
	return strconv.FormatInt(n, 10)
}

// parseMax reads what formatMax returns, with parse for the number.
func parseMax(s string, parse func(string) (int64, error)) (int64, error) {
	if s == value.Max {
		return 0, nil
	}
	n, err := parse(s)
	if err == nil && n == 0 {
		err = fmt.Errorf("0 would leave nothing: write a number from 1 on, or max: %w", ErrInvalid)
	}
	return n, err
}

func parseMaxBytes(s string) (int64, error) { return parseMax(s, value.ParseBytes) }
func parseMaxCount(s string) (int64, error) { return parseMax(s, parsePIDs) }
func parsePIDs(s string) (int64, error)     { return value.ParseUint(s, 1<<22) } // PID_MAX_LIMIT

// IOMax is what a VM does with all of its disks together in a second. 0 is no limit.
type IOMax struct{ ReadBytes, WriteBytes, ReadOps, WriteOps int64 }

func (m *IOMax) rates() []rate {
	const most = 1e15 // THROTTLE_VALUE_MAX of QEMU's include/qemu/throttle.h
	return []rate{
		{"rbps", &m.ReadBytes, 1, most, value.ParseBytes},
		{"wbps", &m.WriteBytes, 1, most, value.ParseBytes},
		{"riops", &m.ReadOps, 1, most, parseRate},
		{"wiops", &m.WriteOps, 1, most, parseRate},
	}
}

// NetMax is what a guest on the bridge receives and sends in a second, bytes. 0 is no limit.
type NetMax struct{ Rx, Tx int64 }

// Bounds of a rate of NetMax, in bytes a second: below them a packet would wait for minutes, and
// above them the kernel's arithmetic overflows (nft_limit_init).
const (
	leastNet = 1 << 10
	mostNet  = 1 << 33
)

func (m *NetMax) rates() []rate {
	return []rate{
		{"rx", &m.Rx, leastNet, mostNet, value.ParseBytes},
		{"tx", &m.Tx, leastNet, mostNet, value.ParseBytes},
	}
}

func parseRate(s string) (int64, error) { return value.ParseUint(s, 1e15) }

// rate is one key of a file such as io.max.
type rate struct {
	key         string
	field       *int64
	least, most int64 // unless 0
	parse       func(string) (int64, error)
}

func formatRates(rates []rate) string {
	words := make([]string, len(rates))
	for i, r := range rates {
		words[i] = r.key + "=" + formatMax(*r.field)
	}
	return strings.Join(words, " ")
}

// parseRates reads `key=value` words. Keys without a word keep their values.
func parseRates(rates []rate, text string) error {
	words := strings.Fields(text)
	if len(words) == 0 {
		return fmt.Errorf("it takes words such as %s=10M or %[1]s=max: %w",
			rates[0].key, ErrInvalid)
	}
	for _, word := range words {
		key, text, _ := strings.Cut(word, "=")
		i := 0
		for i < len(rates) && rates[i].key != key {
			i++
		}
		if i == len(rates) {
			return fmt.Errorf("%.64q is not one of its words, which are like %s: %w",
				word, formatRates(rates), ErrInvalid)
		}
		r := rates[i]
		n, err := parseMax(text, r.parse)
		if err == nil && n != 0 && (n < r.least || n > r.most) {
			err = fmt.Errorf("%d is not %d to %d a second, or max: %w", n, r.least, r.most, ErrInvalid)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		*r.field = n
	}
	return nil
}

// ratesKind is the Kind of a file of rates.
func ratesKind[T comparable](rates func(*T) []rate) *Kind {
	return &Kind{
		Text: true,
		parse: func(field any, text string) error {
			v := *field.(*T)
			err := parseRates(rates(&v), text)
			if err == nil {
				*field.(*T) = v
			}
			return err
		},
		format: func(field any) string { return formatRates(rates(field.(*T))) },
		equal:  func(field, other any) bool { return *field.(*T) == *other.(*T) },
	}
}

// cpuKind is the Kind of cpu.max, in which a missing period stays.
var cpuKind = &Kind{
	Text: true,
	parse: func(field any, text string) error {
		v, err := field.(*CPUMax).parse(text)
		if err == nil {
			*field.(*CPUMax) = v
		}
		return err
	},
	format: func(field any) string { return field.(*CPUMax).String() },
	equal:  func(field, other any) bool { return *field.(*CPUMax) == *other.(*CPUMax) },
}

var (
	weightKind   = kind(Kind{Number: true}, parseWeight, formatWeight)
	maxBytesKind = kind(Kind{Number: true}, parseMaxBytes, formatMax)
	maxCountKind = kind(Kind{Number: true}, parseMaxCount, formatMax)
	ioKind       = ratesKind((*IOMax).rates)
	netMaxKind   = ratesKind((*NetMax).rates)
)

// leastTarget is the least memory that a balloon may leave a guest, bytes. With less the guest's
// kernel ends all of its programs.
const leastTarget = 32 << 20

func checkTarget(c *Config) error {
	if c.MemoryTarget != 0 && c.MemoryTarget < leastTarget {
		return fmt.Errorf("memory_target must be %d bytes or more, or max, not %d: %w",
			leastTarget, c.MemoryTarget, ErrInvalid)
	}
	return nil
}

// limitsDir is the directory of a VM's limits in the tree.
const limitsDir = "limits"

// checkLimits refuses limits that the driver cannot enforce, and those that no VM can live with.
func (m *Manager) checkLimits(old, c *Config) error {
	can := m.driver(c.VMM).Capabilities()
	var none Config
	for i := range Settings {
		s := &Settings[i]
		if s.needs == "" || s.Kind.equal(s.Field(c), s.Field(&none)) {
			continue
		}
		same := s.Kind.equal(s.Field(c), s.Field(old)) && c.VMM == old.VMM
		if why := can.Lack(s.needs); why != "" && !same { // a host may lose what it had
			return fmt.Errorf("%s cannot be limited: %s: %w", s.Name, why, ErrUnsupported)
		}
	}
	if c.NetMax != none.NetMax && c.Net != NetBridge {
		return fmt.Errorf("net.max limits a tap, which only net = bridge has: write bridge to net, "+
			"or rx=max tx=max to limits/net.max: %w", ErrUnsupported)
	}
	if need := c.Memory + can.Overhead; c.MemoryMax != 0 && c.MemoryMax < need {
		return fmt.Errorf("memory.max must be %d bytes or more: the guest's memory of %d and %d "+
			"for the VMM, or the kernel would kill it; not %d: %w",
			need, c.Memory, can.Overhead, c.MemoryMax, ErrInvalid)
	}
	return nil
}
