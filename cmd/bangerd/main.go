// Command bangerd serves virtual machines as files.
//
// It reads the flags and the configuration, locks the state directory, and connects the store, the
// drivers, the network, the manager, the collector and the mount. SIGTERM or SIGINT unmounts and
// leaves the VMs running, for the next start to adopt. A second signal exits at once.
package main

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"banger/vmm/image"
)

// version is set by the linker.
var version = "unknown"

// flags are the command line.
type flags struct {
	paths
	level    slog.Level
	fake     bool
	cleanup  bool
	all, yes bool // of a cleanup: every state directory; without a question
	version  bool
	explicit map[string]bool // names of the flags on the command line
}

func main() {
	// No other user reads a new file before its mode is set.
	unix.Umask(0o077)
	if image.IsWorker() {
		os.Exit(image.Work())
	}
	f, err := parse(os.Args[1:])
	if err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			os.Exit(2) // the flag package has printed the reason
		}
		return
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: f.level}))
	switch {
	case f.version:
		fmt.Println(version)
	case f.cleanup:
		err = runCleanup(f, os.Stdin, os.Stdout)
	default:
		err = run(log, f)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bangerd:", err)
		os.Exit(1)
	}
}

func parse(args []string) (flags, error) {
	f := flags{explicit: map[string]bool{}}
	set := flag.NewFlagSet("bangerd", flag.ContinueOnError)
	set.StringVar(&f.mount, "mount", "", "directory to mount the tree on")
	set.StringVar(&f.state, "state-dir", "", "directory of records, images and disks")
	set.StringVar(&f.config, "config", "", "configuration file")
	set.TextVar(&f.level, "log-level", slog.LevelInfo, "debug, info, warn or error")
	set.BoolVar(&f.fake, "enable-fake-vmm", false, "allow vmm = fake")
	set.BoolVar(&f.cleanup, "cleanup", false, "remove what a daemon left on this host")
	set.BoolVar(&f.all, "all", false, "with --cleanup: of every state directory no daemon has")
	set.BoolVar(&f.yes, "yes", false, "with --cleanup: do not ask")
	set.BoolVar(&f.version, "version", false, "print the version")
	if err := set.Parse(args); err != nil {
		return f, err
	}
	if set.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "bangerd: unexpected argument %q\n", set.Arg(0))
		return f, errors.New("unexpected argument")
	}
	if (f.all || f.yes) && !f.cleanup {
		fmt.Fprintln(os.Stderr, "bangerd: --all and --yes are for --cleanup")
		return f, errors.New("unexpected option")
	}
	set.Visit(func(x *flag.Flag) { f.explicit[x.Name] = true })
	return f, nil
}

// complete sets the paths without a flag to their defaults and makes all of them absolute.
func (f *flags) complete() error {
	def, err := defaultPaths(os.Getuid() == 0, os.Getenv)
	if err != nil && f.mount == "" {
		return err
	}
	for _, p := range []struct {
		to  *string
		def string
	}{{&f.mount, def.mount}, {&f.state, def.state}, {&f.config, def.config}} {
		if *p.to == "" {
			*p.to = p.def
		}
		if *p.to, err = filepath.Abs(*p.to); err != nil {
			return err
		}
	}
	return nil
}
