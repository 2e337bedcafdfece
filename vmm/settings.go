package vmm

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"banger/internal/value"
)

// Setting is one of a VM's settings. The tree, `config`, the store, archives and the daemon's
// configuration read the table Settings. A new setting is a field of Config, a row of Settings and
// a column of the store.
type Setting struct {
	Name    string // of its file, its key in `config` and, with '_' for '.', its column in the store
	Dir     string // the directory of its file in the VM's; empty: the VM's own
	Help    string
	Kind    *Kind
	Field   func(*Config) any   // returns a pointer to its field
	Default string              // unless the daemon's configuration has it; empty: it cannot
	Archive string              // its key in archives; empty: the importing daemon's default
	Told    bool                // the audit shows its values; not so what may hold a secret
	live    func(*Config) bool  // whether it may change while the VM runs; nil: never
	check   func(*Config) error // refuses values that no host allows; nil: allows all
	needs   Feature             // what a driver must have for any value but the zero one; empty: nothing
}

// Kind is how the values of a setting are written.
type Kind struct {
	Number bool // in JSON, unless it is `max`
	List   bool // one entry per line, and no part of `config`
	Flag   bool // 0 or 1; on or off in the daemon's configuration
	Text   bool // the store holds the text of its file

	parse  func(field any, text string) error
	format func(field any) string
	equal  func(field, other any) bool
}

// kind returns the Kind of a type of field.
func kind[T comparable](k Kind, parse func(string) (T, error), format func(T) string) *Kind {
	k.parse = func(field any, text string) error {
		v, err := parse(text)
		if err == nil {
			*field.(*T) = v
		}
		return err
	}
	k.format = func(field any) string { return format(*field.(*T)) }
	k.equal = func(field, other any) bool { return *field.(*T) == *other.(*T) }
	return &k
}

func parseCount(s string) (int, error) {
	n, err := value.ParseUint(s, 1<<16)
	return int(n), err
}

func parseNet(s string) (NetMode, error) {
	switch mode := NetMode(s); mode {
	case NetBridge, NetUser, NetNone:
		return mode, nil
	}
	return "", fmt.Errorf("%.64q is not bridge, user or none: %w", s, ErrInvalid)
}

func formatBytes(n int64) string         { return strconv.FormatInt(n, 10) }
func formatNet(mode NetMode) string      { return string(mode) }
func same(s string) string               { return s }
func parseWord(s string) (string, error) { return s, nil }
func parseList(s string) (string, error) { return value.ListLines(s), nil }

var (
	wordKind     = kind(Kind{}, parseWord, same)
	listKind     = kind(Kind{List: true}, parseList, same)
	netKind      = kind(Kind{}, parseNet, formatNet)
	countKind    = kind(Kind{Number: true}, parseCount, strconv.Itoa)
	bytesKind    = kind(Kind{Number: true}, value.ParseBytes, formatBytes)
	durationKind = kind(Kind{Number: true}, value.ParseDuration, value.FormatDuration)
	flagKind     = kind(Kind{Number: true, Flag: true}, value.ParseBool, value.FormatBool)
)

// Settings are all settings, in the order of `config`.
var Settings = []Setting{
	{Name: "image", Help: "name of a directory in images/", Kind: wordKind,
		Field: func(c *Config) any { return &c.Image }, Default: "builtin", Told: true},
	{Name: "cpus", Help: "count of CPUs", Kind: countKind,
		Field:   func(c *Config) any { return &c.CPUs },
		Default: "1", Archive: "cpus", check: checkCPUs, Told: true},
	{Name: "memory", Help: "bytes of memory", Kind: bytesKind,
		Field: func(c *Config) any { return &c.Memory }, Default: "0", Archive: "memory", Told: true},
	{Name: "disk", Help: "bytes of the VM's own writable disk", Kind: bytesKind,
		Field:   func(c *Config) any { return &c.Disk },
		Archive: "disk", live: hasDisk, check: checkDisk, Told: true},
	{Name: "cmdline", Help: "appended to the kernel's command line", Kind: wordKind,
		Field: func(c *Config) any { return &c.Cmdline }, Archive: "cmdline", check: checkCmdline},
	{Name: "vmm", Help: "what runs the VM", Kind: wordKind,
		Field: func(c *Config) any { return &c.VMM }, Archive: "vmm", Told: true},
	{Name: "net", Help: "bridge, user or none", Kind: netKind,
		Field: func(c *Config) any { return &c.Net }, Told: true},
	{Name: "autostart", Help: "1: start it with the daemon", Kind: flagKind,
		Field: func(c *Config) any { return &c.Autostart }, Told: true},
	{Name: "idle_timeout", Kind: durationKind,
		Help:    "seconds without use until it is stopped, or max",
		Field:   func(c *Config) any { return &c.IdleTimeout },
		Default: value.Max, Archive: "idle_timeout_nsec", live: always, check: checkIdle, Told: true},
	{Name: "stop_timeout", Kind: durationKind,
		Help:    "seconds that a stop waits for the guest",
		Field:   func(c *Config) any { return &c.StopTimeout },
		Default: "10", Archive: "stop_timeout_nsec", live: always, check: checkStop, Told: true},
	{Name: "protected", Help: "1: rmdir gives EPERM", Kind: flagKind,
		Field: func(c *Config) any { return &c.Protected }, live: always, Told: true},
	{Name: "isolate", Help: "1: it neither reaches nor is reached by other VMs", Kind: flagKind,
		Field: func(c *Config) any { return &c.Isolate }, Default: "1", live: always, Told: true},
	{Name: "expose_fs", Help: "1: ls lists the guest's files", Kind: flagKind,
		Field: func(c *Config) any { return &c.ExposeFS }, live: always, Told: true},
	{Name: "publish", Kind: listKind,
		Help:  "ports of the host that lead into the guest, one per line",
		Field: func(c *Config) any { return &c.Publish }, live: always, Told: true},
	{Name: "authorized_keys", Help: "ssh keys that may log in, one per line", Kind: listKind,
		Field: func(c *Config) any { return &c.AuthorizedKeys }, live: always},
	{Name: "memory_target", Help: "bytes that the balloon leaves the guest, or max",
		Kind: maxBytesKind, Told: true,
		Field: func(c *Config) any { return &c.MemoryTarget },
		live:  always, check: checkTarget, needs: FeatureBalloon},
	{Name: "cpu.max", Dir: limitsDir, Help: "CPU time and its period, microseconds",
		Kind: cpuKind, Told: true,
		Field: func(c *Config) any { return &c.CPUMax }, live: always, needs: FeatureCPUMax},
	{Name: "cpu.weight", Dir: limitsDir, Help: "share of CPU time, 1 to 10000",
		Kind: weightKind, Told: true,
		Field: func(c *Config) any { return &c.CPUWeight }, live: always, needs: FeatureCPUWeight},
	{Name: "memory.max", Dir: limitsDir, Help: "bytes of the VMM and its guest, or max",
		Kind: maxBytesKind, Told: true,
		Field: func(c *Config) any { return &c.MemoryMax }, live: always, needs: FeatureMemoryMax},
	{Name: "pids.max", Dir: limitsDir, Help: "threads of the VMM, or max",
		Kind: maxCountKind, Told: true,
		Field: func(c *Config) any { return &c.PIDsMax }, live: always, needs: FeaturePIDsMax},
	{Name: "io.max", Dir: limitsDir, Help: "a second, of all disks",
		Kind: ioKind, Told: true,
		Field: func(c *Config) any { return &c.IOMax }, live: always, needs: FeatureIOMax},
	{Name: "net.max", Dir: limitsDir, Help: "bytes a second, as the guest sees them",
		Kind: netMaxKind, Told: true,
		Field: func(c *Config) any { return &c.NetMax }, live: always, needs: FeatureNetMax},
}

// FindSetting returns the setting of that name, or nil.
func FindSetting(name string) *Setting {
	for i := range Settings {
		if Settings[i].Name == name {
			return &Settings[i]
		}
	}
	return nil
}

// Show returns the value as its file shows it, without an end of line.
func (s *Setting) Show(c *Config) string { return s.Kind.format(s.Field(c)) }

// Set parses the text of its file. After ErrInvalid c is unchanged.
func (s *Setting) Set(c *Config, text string) error { return s.Kind.parse(s.Field(c), text) }

// Check refuses a value that no host allows. ErrInvalid or ErrTooBig.
func (s *Setting) Check(c *Config) error {
	if s.check == nil {
		return nil
	}
	return s.check(c)
}

// changedSettings returns the names of the settings that differ, and whether all of them may change
// while the VM runs.
func changedSettings(old, c *Config) (names []string, live bool) {
	live = true
	if *old == *c {
		return nil, live
	}
	for i := range Settings {
		s := &Settings[i]
		if !s.Kind.equal(s.Field(old), s.Field(c)) {
			names = append(names, s.Name)
			live = live && s.live != nil && s.live(old)
		}
	}
	return names, live
}

func always(*Config) bool { return true }

// hasDisk permits a running guest's disk to grow. A disk cannot be added to it.
func hasDisk(old *Config) bool { return old.Disk > 0 }

func checkCPUs(c *Config) error {
	if c.CPUs < 1 || c.CPUs > maxCPUs {
		return fmt.Errorf("cpus must be 1 to %d, not %d: %w", maxCPUs, c.CPUs, ErrInvalid)
	}
	return nil
}

func checkDisk(c *Config) error {
	if c.Disk > maxDisk {
		return fmt.Errorf("disk must be at most %d bytes, not %d: %w",
			int64(maxDisk), c.Disk, ErrInvalid)
	}
	return nil
}

func checkCmdline(c *Config) error {
	if len(c.Cmdline) > maxCmdlineLen {
		return fmt.Errorf("cmdline has %d bytes, %d are allowed: %w",
			len(c.Cmdline), maxCmdlineLen, ErrTooBig)
	}
	if strings.ContainsFunc(c.Cmdline, func(r rune) bool { return r < ' ' || r > '~' }) {
		return fmt.Errorf("cmdline must be one line of printable ASCII: %w", ErrInvalid)
	}
	return nil
}

func checkIdle(c *Config) error {
	if c.IdleTimeout != NoLimit && c.IdleTimeout <= 0 {
		return fmt.Errorf("idle_timeout must be more than 0 seconds, or max: %w", ErrInvalid)
	}
	return nil
}

func checkStop(c *Config) error {
	if c.StopTimeout < 0 || c.StopTimeout > 24*time.Hour {
		return fmt.Errorf("stop_timeout must be 0 to 86400 seconds: %w", ErrInvalid)
	}
	return nil
}
