package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"banger/internal/host"
	"banger/internal/value"
	"banger/vmm"
)

// config is config.toml. Beside these keys it has those of vmm.Settings with a default.
type config struct {
	VM vmm.Config `toml:"-"` // of new VMs

	Accel        string        `toml:"accel"`   // auto, kvm or tcg
	Machine      wordOrAuto    `toml:"machine"` // microvm or q35, empty for the driver's choice
	QEMU         wordOrAuto    `toml:"qemu"`    // path of the program, empty for the one in PATH
	Bridge       string        `toml:"bridge"`
	Subnet       netip.Prefix  `toml:"subnet"`
	Subnet6      subnet6       `toml:"subnet6"` // auto, off or a /64
	Uplink       wordOrAuto    `toml:"uplink"`  // empty for the link of the default route
	MTU          orAuto        `toml:"mtu"`     // 0: the uplink's
	NAT          onOff         `toml:"nat"`
	LAN          onOff         `toml:"lan"`
	GuestToHost  onOff         `toml:"guest_to_host"`
	UserWorld    onOff         `toml:"user_world"`
	DNS          onOff         `toml:"dns"`
	HostsFile    string        `toml:"hosts_file"` // absolute, or off
	VMUIDBase    int           `toml:"vm_uid_base"`
	StatsMaxAge  time.Duration `toml:"stats_max_age"`
	PortsMaxAge  time.Duration `toml:"ports_max_age"`
	HealthMaxAge time.Duration `toml:"health_max_age"`
	PollInterval time.Duration `toml:"poll_interval"`
	Group        string        `toml:"group"` // whose members may create VMs

	ImageMaxSize  size `toml:"image_max_size"`  // of all files that an image is made from
	ImageMaxFiles int  `toml:"image_max_files"` // how many those may be

	MetricsListen string `toml:"metrics_listen"` // off, HOST:PORT, or a port on loopback

	// Of users without a rule in quota/; see vmm.Quota.
	QuotaVMs    countQuota `toml:"quota_vms"`
	QuotaCPUs   countQuota `toml:"quota_cpus"`
	QuotaMemory bytesQuota `toml:"quota_memory"`
	QuotaDisk   bytesQuota `toml:"quota_disk"`
	// What running VMs may use of the host's memory, as a part of it.
	OvercommitMemory ratio `toml:"overcommit_memory"`
}

// notServed is the metrics_listen of a daemon without HTTP, and the hosts_file of one that writes
// none.
const notServed = "off"

func defaultConfig() config {
	c := config{Accel: "auto", Bridge: "banger0", Subnet: netip.MustParsePrefix("172.30.0.0/16"),
		VMUIDBase: 2013265920, StatsMaxAge: time.Second, PortsMaxAge: 2 * time.Second,
		HealthMaxAge: time.Second, PollInterval: 10 * time.Second, Group: "banger",
		ImageMaxSize: 8 << 30, ImageMaxFiles: 500_000,
		DNS: true, HostsFile: notServed, MetricsListen: notServed,
		QuotaVMs: 64, QuotaCPUs: autoQuota, QuotaMemory: autoQuota, QuotaDisk: autoQuota,
		OvercommitMemory: 1}
	for _, s := range vmm.Settings {
		if s.Default == "" {
			continue
		}
		if err := s.Set(&c.VM, s.Default); err != nil {
			panic(fmt.Sprintf("the default of %s: %v", s.Name, err)) // of a constant
		}
	}
	return c
}

// setDefault sets the default of a setting to a value of TOML.
func (c *config) setDefault(s *vmm.Setting, v any) error {
	text := fmt.Sprint(v)
	switch v.(type) {
	case string, int64, bool:
	default:
		return fmt.Errorf("%s is neither a text nor a number", s.Name)
	}
	if s.Kind.Flag {
		var on onOff
		if err := on.UnmarshalTOML(v); err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
		text = value.FormatBool(bool(on))
	}
	if err := s.Set(&c.VM, text); err != nil {
		return fmt.Errorf("%s: %w", s.Name, err)
	}
	return s.Check(&c.VM)
}

// onOff is the words on and off, or TOML's true and false.
type onOff bool

func (o *onOff) UnmarshalTOML(v any) error {
	switch v {
	case "on", true:
		*o = true
	case "off", false:
		*o = false
	default:
		return fmt.Errorf("%v is neither \"on\" nor \"off\"", v)
	}
	return nil
}

func (o onOff) String() string {
	if o {
		return "on"
	}
	return "off"
}

// subnet6 is a prefix, or one of the words auto, which is the zero value, and off.
type subnet6 struct {
	prefix netip.Prefix
	off    bool
}

func (s *subnet6) UnmarshalTOML(v any) error {
	text, _ := v.(string)
	switch text {
	case "auto":
		*s = subnet6{}
	case "off":
		*s = subnet6{off: true}
	default:
		p, err := netip.ParsePrefix(text)
		if err != nil || !p.Addr().Is6() || p.Bits() != 64 {
			return fmt.Errorf(
				"%v is none of \"auto\", \"off\" and a /64 such as \"fd12:3456:789a::/64\"", v)
		}
		*s = subnet6{prefix: p}
	}
	return nil
}

func (s subnet6) String() string {
	switch {
	case s.off:
		return "off"
	case s.prefix.IsValid():
		return s.prefix.String()
	}
	return "auto"
}

// size is a count of bytes. Its text may have a suffix in powers of 1024.
type size int64

func (s *size) UnmarshalTOML(v any) error {
	n, err := value.ParseBytes(fmt.Sprint(v))
	*s = size(n)
	return err
}

// auto is the text of a setting that the daemon chooses.
const auto = "auto"

// wordOrAuto is a text, or the word auto for the empty one.
type wordOrAuto string

func (w *wordOrAuto) UnmarshalTOML(v any) error {
	text, ok := v.(string)
	if !ok {
		return fmt.Errorf("%v is no text", v)
	}
	if text == auto {
		text = ""
	}
	*w = wordOrAuto(text)
	return nil
}

func (w wordOrAuto) String() string { return cmp.Or(string(w), auto) }

// orAuto is a number, or the word auto for 0.
type orAuto int

func (n *orAuto) UnmarshalTOML(v any) error {
	number, ok := v.(int64)
	if !ok && v != auto {
		return fmt.Errorf("%v is neither a number nor \"auto\"", v)
	}
	*n = orAuto(number)
	return nil
}

func (n orAuto) String() string {
	if n == 0 {
		return auto
	}
	return strconv.Itoa(int(n))
}

// readConfig reads the file over the defaults. Its absence is an error only if the user named it.
func readConfig(path string, named bool) (config, error) {
	c := defaultConfig()
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && !named {
		return c, nil
	}
	if err != nil {
		return c, fmt.Errorf("cannot read the configuration: %w", err)
	}
	md, err := toml.Decode(string(b), &c)
	if err != nil {
		var pe toml.ParseError
		if errors.As(err, &pe) {
			return c, fmt.Errorf("%s:%d: %s", path, pe.Position.Line, pe.Message)
		}
		return c, fmt.Errorf("%s: %w", path, err)
	}
	var all map[string]any
	if _, err := toml.Decode(string(b), &all); err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	for _, key := range md.Undecoded() {
		line := lineOf(string(b), key)
		s := vmm.FindSetting(strings.ToLower(key.String())) // as the decoder finds the other keys
		if s == nil || s.Default == "" {
			return c, fmt.Errorf("%s:%d: unknown key %q", path, line, key.String())
		}
		if err := c.setDefault(s, all[key.String()]); err != nil {
			return c, fmt.Errorf("%s:%d: %w", path, line, err)
		}
	}
	if err := c.check(); err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// lineOf returns the line that sets key. The decoder has no positions of keys that it skipped.
func lineOf(text string, key toml.Key) int {
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimLeft(line, " \t[\"'")
		rest, ok := strings.CutPrefix(line, key[0])
		if ok && strings.IndexAny(rest, " \t=.\"']") == 0 {
			return i + 1
		}
	}
	return 1
}

func (c *config) check() error {
	switch {
	case c.Accel != "auto" && c.Accel != "kvm" && c.Accel != "tcg":
		return fmt.Errorf("accel = %q is none of auto, kvm, tcg", c.Accel)
	case c.Machine != "" && c.Machine != "microvm" && c.Machine != "q35":
		return fmt.Errorf("machine = %q is neither microvm nor q35", c.Machine)
	case c.MTU != 0 && (c.MTU < 576 || c.MTU > 65521):
		return fmt.Errorf("mtu = %d is not 576 to 65521 bytes", c.MTU)
	case c.VMUIDBase != 0 && (c.VMUIDBase < leastUIDBase || c.VMUIDBase > mostUIDBase):
		return fmt.Errorf("vm_uid_base = %d is neither 0 nor %d to %d: "+
			"%d uids below it are for jobs, %d from it on for VMs",
			c.VMUIDBase, leastUIDBase, mostUIDBase, host.JobUIDs, vmUIDs)
	case c.ImageMaxSize == 0 || c.ImageMaxFiles <= 0:
		return errors.New("image_max_size and image_max_files must be more than 0")
	case c.StatsMaxAge <= 0 || c.PortsMaxAge <= 0 || c.HealthMaxAge <= 0 || c.PollInterval <= 0:
		return errors.New("max_age and poll_interval must be more than 0")
	case c.HostsFile != notServed && !filepath.IsAbs(c.HostsFile):
		return fmt.Errorf("hosts_file = %q is neither off nor an absolute path such as /etc/hosts",
			c.HostsFile)
	}
	if c.MetricsListen == notServed {
		return nil
	}
	var err error
	c.MetricsListen, err = listenAddress(c.MetricsListen)
	return err
}

// paths are the places where the daemon works, unless a flag changes them.
type paths struct{ mount, state, config string }

// defaultPaths returns the paths that bangerd(8) documents. Without XDG_RUNTIME_DIR it returns an
// error and no mount. The error matters only if no flag names a mount.
func defaultPaths(root bool, env func(string) string) (paths, error) {
	p, err := host.DefaultPlaces(root, env)
	return paths{p.Mount, p.State, p.Config}, err
}

// text returns the content of the file `config` at the top of the mount.
func (c *config) text(p paths) string {
	var b strings.Builder
	show := func(key string, v any) {
		text := fmt.Sprint(v)
		if d, ok := v.(time.Duration); ok {
			text = value.FormatDuration(d)
		}
		fmt.Fprintf(&b, "%s %s\n", key, text)
	}
	show("mount", p.mount)
	show("state_dir", p.state)
	show("config", p.config)
	for _, s := range vmm.Settings {
		switch {
		case s.Default == "":
		case s.Kind.Flag:
			show(s.Name, onOff(s.Show(&c.VM) == "1"))
		default:
			show(s.Name, s.Show(&c.VM))
		}
	}
	for field, v := range reflect.ValueOf(*c).Fields() {
		if key := field.Tag.Get("toml"); key != "-" {
			show(key, v.Interface())
		}
	}
	return b.String()
}
