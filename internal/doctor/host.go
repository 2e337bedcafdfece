package doctor

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"banger/internal/host"
	"banger/internal/kvm"

	"golang.org/x/sys/unix"
)

// Host is what the checks look at. [New] returns the present one.
type Host struct {
	Root     string // directory that stands for /
	UID      int
	User     string // name of that uid
	Version  string // of this program
	Programs string // directory of this program

	Mount    string            // where the daemon's tree is, or should be
	Served   map[string]string // the daemon's settings: its file config; nil without a daemon
	Daemon   string            // version of the daemon that serves, empty for none
	Mute     error             // why no daemon answered
	StateDir string
	Config   string // the daemon's configuration file

	Find     func(program string) string // its path, "" if it is not there
	KVM      func(ctx context.Context, root string) error
	Nft      func() error // makes and removes a table
	Landlock func() (int, error)
	Free     func(path string) (uint64, error) // bytes that this user may write there
	Dial     func(socket string) error
	Open     func(path string) error // for reading and writing
}

// maxFile bounds what is read of a file of the host, in bytes.
const maxFile = 256 << 10

// New returns the present host, with the daemon that serves mount. Without one, the daemon's paths
// are defaults. It reads two files of the mount, and blocks for limit at most.
func New(version, mount string, places host.Places) *Host {
	h := &Host{Root: "/", UID: os.Getuid(), User: userName(), Version: version,
		Mount: mount, StateDir: places.State, Config: places.Config,
		Find: host.FindProgram, KVM: kvm.Check, Nft: tryNft, Landlock: host.LandlockABI,
		Free: free, Dial: dial, Open: openBoth}
	if program, err := os.Executable(); err == nil {
		h.Programs = filepath.Dir(program)
	}
	type answer struct {
		version, config string
		err             error
	}
	answers := make(chan answer, 1)
	go func() { // a daemon that hangs holds up only this goroutine
		version, err := readFile(filepath.Join(mount, "version"))
		config, err2 := readFile(filepath.Join(mount, "config"))
		answers <- answer{version, config, errors.Join(err, err2)}
	}()
	select {
	case a := <-answers:
		h.Mute = a.err
		if a.err == nil {
			h.served(a.version, a.config)
		}
	case <-time.After(limit):
		h.Mute = errHangs
	}
	return h
}

// errHangs: the daemon's files are there and reading them does not end.
var errHangs = errors.New("it does not answer")

// served takes over what the files version and config of the mount say.
func (h *Host) served(version, config string) {
	h.Daemon, h.Served = strings.TrimSpace(version), map[string]string{}
	for line := range strings.Lines(config) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		h.Served[key] = value
	}
	for key, to := range map[string]*string{"state_dir": &h.StateDir, "config": &h.Config} {
		if v := h.Served[key]; filepath.IsAbs(v) {
			*to = v
		}
	}
}

// setting returns a setting of the daemon, or the one that it has by default.
func (h *Host) setting(key, otherwise string) string {
	if v := h.Served[key]; v != "" && v != "auto" {
		return v
	}
	return otherwise
}

func (h *Host) path(name string) string { return filepath.Join(h.Root, name) }

// read returns the content of a file, the beginning of a long one; "" if it cannot be read.
func (h *Host) read(name string) string {
	text, _ := readFile(h.path(name))
	return text
}

// exists reports whether there is something of that name.
func (h *Host) exists(name string) bool {
	_, err := os.Stat(h.path(name))
	return err == nil
}

// run runs a program that only looks, and returns its output.
func (h *Host) run(ctx context.Context, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.WaitDelay = "/", time.Second
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	output := host.Beginning{Most: maxFile}
	cmd.Stdout = &output
	err := cmd.Run()
	return output.String(), err
}

// asRoot returns a command that needs root, as this user types it.
func (h *Host) asRoot(command string) string {
	if h.UID == 0 {
		return command
	}
	return "sudo " + command
}

// configure returns the command that adds a line to the daemon's configuration.
func (h *Host) configure(line string) string {
	return "echo '" + line + "' >> " + h.Config + ", and restart bangerd"
}

// readFile returns the first maxFile bytes of a file. It waits for no FIFO.
func readFile(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it is not a regular file")
	}
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	return string(b), err
}

// fields returns the words of the first line that begins with a word, without it.
func fields(text, first string) []string {
	lines := bufio.NewScanner(bytes.NewReader([]byte(text)))
	for lines.Scan() {
		if words := strings.Fields(lines.Text()); len(words) > 0 && words[0] == first {
			return words[1:]
		}
	}
	return nil
}

// hasLine reports whether a line of text, without white space around it, is one of these.
func hasLine(text string, wanted ...string) bool {
	for line := range strings.Lines(text) {
		if slices.Contains(wanted, strings.TrimSpace(line)) {
			return true
		}
	}
	return false
}
