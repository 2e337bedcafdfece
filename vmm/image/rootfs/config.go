package rootfs

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"banger/vmm/guest"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Config is the configuration of a container's image (image-spec, config.md), as far as banger uses
// it. Other fields are ignored, whatever they hold. docs/images.md has what each field does.
type Config struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant"`
	RootFS       struct {
		DiffIDs []v1.Hash `json:"diff_ids"`
	} `json:"rootfs"`
	Config struct {
		User         string
		ExposedPorts map[string]struct{}
		Volumes      map[string]struct{}
		Env          []string
		Entrypoint   words
		Cmd          words
		WorkingDir   string
		StopSignal   string
		Healthcheck  json.RawMessage // of docker's, in no document of OCI: it cannot spoil an image
	} `json:"config"`
}

// Healthcheck is how an image's author would find out whether its program works. Times are in
// seconds; 0 stands for what docker has in their place.
type Healthcheck struct {
	Test        []string `json:"test"` // CMD and a command, or CMD-SHELL and a line for the shell
	Interval    float64  `json:"interval,omitempty"`
	Timeout     float64  `json:"timeout,omitempty"`
	StartPeriod float64  `json:"start_period,omitempty"`
	Retries     int      `json:"retries,omitempty"`
}

// maxHealthcheck bounds the configuration's text of a healthcheck that is kept, in bytes.
const maxHealthcheck = 8 << 10

// words is a list of strings, or one string, which is a list of one (strslice of docker's API).
type words []string

// UnmarshalJSON implements json.Unmarshaler.
func (w *words) UnmarshalJSON(text []byte) error {
	var one string
	if len(text) > 0 && text[0] == '"' {
		if err := json.Unmarshal(text, &one); err != nil {
			return err
		}
		*w = words{one}
		return nil
	}
	return json.Unmarshal(text, (*[]string)(w))
}

// ParseConfig reads a configuration.
func ParseConfig(text []byte) (*Config, error) {
	c := new(Config)
	if err := json.Unmarshal(text, c); err != nil {
		return nil, fmt.Errorf("its configuration cannot be read: %w", err)
	}
	return c, nil
}

// Program returns the program that the image runs, without Args if it names none. It is an error if
// no guest could run it as the image says.
func (i *Image) Program() (*guest.Program, error) {
	c := &i.Config.Config
	entry := c.Entrypoint
	if len(entry) == 1 && entry[0] == "" {
		entry = nil // as docker reads it
	}
	p := &guest.Program{Args: slices.Concat([]string(entry), []string(c.Cmd)), User: c.User}
	if len(p.Args) > 0 && p.Args[0] == "" {
		return nil, fmt.Errorf("the command in its configuration begins with an empty word")
	}
	for _, e := range c.Env {
		// A variable without a value is unset, and an execve(2) needs none without a name.
		if name, _, ok := strings.Cut(e, "="); ok && name != "" {
			p.Env = append(p.Env, e)
		}
	}
	if c.WorkingDir != "" {
		p.Dir = path.Join("/", c.WorkingDir)
	}
	for v := range c.Volumes {
		p.Volumes = append(p.Volumes, path.Join("/", v))
	}
	slices.Sort(p.Volumes)
	for _, text := range slices.Concat(p.Args, p.Env, p.Volumes, []string{p.User, p.Dir}) {
		if strings.IndexByte(text, 0) >= 0 {
			return nil, fmt.Errorf("its configuration has a NUL byte in %.64q", text)
		}
	}
	if c.StopSignal != "" {
		n, err := guest.ParseSignal(c.StopSignal)
		if err != nil {
			return nil, fmt.Errorf("the StopSignal of its configuration: %w", err)
		}
		p.StopSignal = strconv.Itoa(n) // which the agent of any version understands
	}
	return p, nil
}

// Healthcheck returns the image's healthcheck, nil if it has none or if that is not understood.
func (i *Image) Healthcheck() *Healthcheck {
	text := i.Config.Config.Healthcheck
	var has struct {
		Test                           words
		Interval, Timeout, StartPeriod time.Duration
		Retries                        int
	}
	if len(text) > maxHealthcheck || json.Unmarshal(text, &has) != nil || len(has.Test) < 2 ||
		has.Test[0] != "CMD" && has.Test[0] != "CMD-SHELL" {
		return nil
	}
	seconds := func(d time.Duration) float64 { return max(0, d.Seconds()) }
	return &Healthcheck{Test: has.Test, Interval: seconds(has.Interval), Retries: max(0, has.Retries),
		Timeout: seconds(has.Timeout), StartPeriod: seconds(has.StartPeriod)}
}

// maxExposed bounds the ports of an image that are shown.
const maxExposed = 1000

// Exposed returns the ports that the image's author expects to be reached, sorted by number, each
// as 80/tcp. It leaves out what is no port, and what is more than maxExposed.
func (i *Image) Exposed() []string {
	type port struct {
		number   uint64
		protocol string
	}
	var ports []port
	for text := range i.Config.Config.ExposedPorts {
		number, protocol, ok := strings.Cut(text, "/")
		if protocol = strings.ToLower(protocol); !ok {
			protocol = "tcp"
		}
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil || n == 0 || !slices.Contains([]string{"tcp", "udp", "sctp"}, protocol) {
			continue
		}
		ports = append(ports, port{n, protocol})
	}
	slices.SortFunc(ports, func(a, b port) int {
		if a.number != b.number {
			return int(a.number) - int(b.number)
		}
		return strings.Compare(a.protocol, b.protocol)
	})
	ports = slices.Compact(ports)
	var list []string
	for _, p := range ports[:min(len(ports), maxExposed)] {
		list = append(list, fmt.Sprintf("%d/%s", p.number, p.protocol))
	}
	return list
}
