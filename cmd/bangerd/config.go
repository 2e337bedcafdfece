package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"banger/internal/host"
	"banger/vmm"
)

// config is config.toml. Times are Go durations, memory takes K M G T.
type config struct {
	Image        string        `toml:"image"`
	Accel        string        `toml:"accel"`   // auto, kvm or tcg
	Machine      string        `toml:"machine"` // microvm or q35, empty for the driver's choice
	QEMU         string        `toml:"qemu"`    // path of the program, empty to look for it in PATH
	Bridge       string        `toml:"bridge"`
	Subnet       netip.Prefix  `toml:"subnet"`
	Subnet6      subnet6       `toml:"subnet6"` // auto, off or a /64
	Uplink       string        `toml:"uplink"`  // empty for the link of the default route
	MTU          int           `toml:"mtu"`     // 0: the uplink's
	NAT          onOff         `toml:"nat"`
	LAN          onOff         `toml:"lan"`
	GuestToHost  onOff         `toml:"guest_to_host"`
	UserWorld    onOff         `toml:"user_world"`
	Isolate      onOff         `toml:"isolate"`
	DNS          onOff         `toml:"dns"`
	HostsFile    string        `toml:"hosts_file"` // absolute, or off
	VMUIDBase    int           `toml:"vm_uid_base"`
	IdleTimeout  span          `toml:"idle_timeout"`
	StopTimeout  span          `toml:"stop_timeout"`
	CPUs         int           `toml:"cpus"`
	Memory       size          `toml:"memory"` // 0: the image's own
	StatsMaxAge  time.Duration `toml:"stats_max_age"`
	PortsMaxAge  time.Duration `toml:"ports_max_age"`
	HealthMaxAge time.Duration `toml:"health_max_age"`
	PollInterval time.Duration `toml:"poll_interval"`
	Group        string        `toml:"group"` // whose members may create VMs

	ImageMaxSize  size `toml:"image_max_size"`  // of all files that an image is made from
	ImageMaxFiles int  `toml:"image_max_files"` // how many those may be

	MetricsListen string `toml:"metrics_listen"` // off, HOST:PORT, or a port on loopback
}

// notServed is the metrics_listen of a daemon without HTTP, and the hosts_file of one that keeps no names in any.
const notServed = "off"

func defaultConfig() config {
	return config{Image: "builtin", Accel: "auto", Bridge: "banger0", Subnet: netip.MustParsePrefix("172.30.0.0/16"),
		VMUIDBase: 2013265920, IdleTimeout: span(vmm.NoLimit), StopTimeout: span(10 * time.Second), CPUs: 1,
		StatsMaxAge: time.Second, PortsMaxAge: 2 * time.Second, HealthMaxAge: time.Second, PollInterval: 10 * time.Second, Group: "banger",
		ImageMaxSize: 8 << 30, ImageMaxFiles: 500_000,
		Isolate: true, DNS: true, HostsFile: notServed, MetricsListen: notServed}
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
			return fmt.Errorf("%v is none of \"auto\", \"off\" and a /64 such as \"fd12:3456:789a::/64\"", v)
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

// span is a time that may be "max".
type span time.Duration

func (s *span) UnmarshalTOML(v any) error {
	switch v := v.(type) {
	case int64:
		*s = span(time.Duration(v) * time.Second)
	case string:
		if v == "max" {
			*s = span(vmm.NoLimit)
			return nil
		}
		d, err := time.ParseDuration(v)
		if err != nil {
			return fmt.Errorf("%q is neither a duration such as \"90s\" nor \"max\"", v)
		}
		*s = span(d)
	default:
		return fmt.Errorf("%v is not a duration", v)
	}
	if *s < 0 {
		return errors.New("a duration cannot be negative")
	}
	return nil
}

func (s span) String() string {
	if time.Duration(s) == vmm.NoLimit {
		return "max"
	}
	return seconds(time.Duration(s))
}

func seconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) }

// size is bytes, with a suffix in powers of 1024.
type size int64

func (s *size) UnmarshalTOML(v any) error {
	if n, ok := v.(int64); ok && n >= 0 {
		*s = size(n)
		return nil
	}
	text, _ := v.(string)
	shift := 0
	if i := strings.IndexByte("KMGT", last(text)); i >= 0 {
		shift, text = 10*(i+1), text[:len(text)-1]
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 || n<<shift>>shift != n {
		return fmt.Errorf("%v is not a number of bytes such as \"256M\"", v)
	}
	*s = size(n << shift)
	return nil
}

func last(s string) byte {
	if s == "" {
		return 0
	}
	return s[len(s)-1]
}

// readConfig reads the file over the defaults. An absent file is the defaults, unless it was asked for by name.
func readConfig(path string, asked bool) (config, error) {
	c := defaultConfig()
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && !asked {
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
	if unknown := md.Undecoded(); len(unknown) > 0 {
		return c, fmt.Errorf("%s:%d: unknown key %q", path, lineOf(string(b), unknown[0]), unknown[0].String())
	}
	if err := c.check(); err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// lineOf finds the line that sets key; the decoder keeps no positions of what it did not decode.
func lineOf(text string, key toml.Key) int {
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimLeft(line, " \t[\"'")
		if rest, ok := strings.CutPrefix(line, key[0]); ok && strings.IndexAny(rest, " \t=.\"']") == 0 {
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
	case c.CPUs < 1 || c.CPUs > 255:
		return fmt.Errorf("cpus = %d is not in 1 to 255", c.CPUs)
	case c.MTU != 0 && (c.MTU < 576 || c.MTU > 65521):
		return fmt.Errorf("mtu = %d is not 576 to 65521 bytes", c.MTU)
	case c.VMUIDBase != 0 && (c.VMUIDBase < leastUIDBase || c.VMUIDBase > mostUIDBase):
		return fmt.Errorf("vm_uid_base = %d is neither 0 nor %d to %d: %d uids below it are for jobs, %d from it on for VMs",
			c.VMUIDBase, leastUIDBase, mostUIDBase, host.JobUIDs, vmUIDs)
	case c.ImageMaxSize == 0 || c.ImageMaxFiles <= 0:
		return errors.New("image_max_size and image_max_files must be more than 0")
	case c.StatsMaxAge <= 0 || c.PortsMaxAge <= 0 || c.HealthMaxAge <= 0 || c.PollInterval <= 0:
		return errors.New("max_age and poll_interval must be more than 0")
	case c.HostsFile != notServed && !filepath.IsAbs(c.HostsFile):
		return fmt.Errorf("hosts_file = %q is neither off nor an absolute path such as /etc/hosts", c.HostsFile)
	}
	if c.MetricsListen == notServed {
		return nil
	}
	var err error
	c.MetricsListen, err = listenAddress(c.MetricsListen)
	return err
}

func orAuto(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

// paths are where the daemon works when no flag says otherwise.
type paths struct{ mount, state, config string }

// defaultPaths are FILES.md's. A missing XDG_RUNTIME_DIR is an error only when a default needs it.
func defaultPaths(root bool, env func(string) string) (paths, error) {
	if root {
		return paths{"/run/banger", "/var/lib/banger", "/etc/banger/config.toml"}, nil
	}
	home := env("HOME")
	or := func(name, otherwise string) string {
		if v := env(name); filepath.IsAbs(v) {
			return v
		}
		return filepath.Join(home, otherwise)
	}
	p := paths{state: filepath.Join(or("XDG_STATE_HOME", ".local/state"), "banger"),
		config: filepath.Join(or("XDG_CONFIG_HOME", ".config"), "banger/config.toml")}
	run := env("XDG_RUNTIME_DIR")
	if !filepath.IsAbs(run) {
		return p, errors.New("XDG_RUNTIME_DIR is not set, so there is no place for the mount: log in through PAM's systemd session, or give --mount DIR")
	}
	p.mount = filepath.Join(run, "banger")
	return p, nil
}

// text is what the file `config` at the top of the mount shows.
func (c *config) text(p paths) string {
	var b strings.Builder
	for _, kv := range [][2]string{
		{"mount", p.mount}, {"state_dir", p.state}, {"config", p.config},
		{"image", c.Image}, {"accel", c.Accel}, {"machine", c.Machine}, {"qemu", c.QEMU},
		{"bridge", c.Bridge}, {"subnet", c.Subnet.String()}, {"subnet6", c.Subnet6.String()}, {"uplink", c.Uplink}, {"mtu", orAuto(c.MTU)},
		{"nat", c.NAT.String()}, {"lan", c.LAN.String()}, {"guest_to_host", c.GuestToHost.String()}, {"user_world", c.UserWorld.String()},
		{"isolate", c.Isolate.String()}, {"dns", c.DNS.String()}, {"hosts_file", c.HostsFile}, {"vm_uid_base", strconv.Itoa(c.VMUIDBase)},
		{"idle_timeout", c.IdleTimeout.String()}, {"stop_timeout", c.StopTimeout.String()},
		{"cpus", strconv.Itoa(c.CPUs)}, {"memory", strconv.FormatInt(int64(c.Memory), 10)},
		{"stats_max_age", seconds(c.StatsMaxAge)}, {"ports_max_age", seconds(c.PortsMaxAge)},
		{"health_max_age", seconds(c.HealthMaxAge)}, {"poll_interval", seconds(c.PollInterval)}, {"group", c.Group},
		{"image_max_size", strconv.FormatInt(int64(c.ImageMaxSize), 10)}, {"image_max_files", strconv.Itoa(c.ImageMaxFiles)},
		{"metrics_listen", c.MetricsListen},
	} {
		if kv[1] == "" {
			kv[1] = "auto"
		}
		fmt.Fprintf(&b, "%s %s\n", kv[0], kv[1])
	}
	return b.String()
}
