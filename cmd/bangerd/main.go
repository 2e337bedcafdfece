// Command bangerd serves virtual machines as files.
//
// It reads the flags and the configuration, takes the lock of the state directory, and wires the store, the
// drivers, the network, the manager, the collector and the mount together; what they do is theirs.
// SIGTERM or SIGINT unmounts and leaves the VMs running for the next start to adopt; a second signal exits at once.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"banger/collector"
	"banger/collector/metrics"
	"banger/fs"
	"banger/internal/host"
	"banger/vmm"
	"banger/vmm/archive"
	"banger/vmm/fake"
	"banger/vmm/image"
	"banger/vmm/network"
	"banger/vmm/qemu"
	"banger/vmm/store"
)

// version is set by the linker.
var version = "unknown"

// closeTimeout bounds the wait at the end for the transitions under way.
const closeTimeout = 15 * time.Second

// flags are the command line.
type flags struct {
	paths
	level    slog.Level
	fake     bool
	cleanup  bool
	all, yes bool // of a cleanup: of every state directory; without asking
	version  bool
	explicit map[string]bool
}

func main() {
	// No file that this process makes is another user's to read before its mode is set.
	unix.Umask(0o077)
	if image.IsWorker() {
		os.Exit(image.Work())
	}
	f, err := parse(os.Args[1:])
	if err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			os.Exit(2) // the flag package has said why
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
	set.BoolVar(&f.cleanup, "cleanup", false, "remove what a daemon of the state directory left on this host")
	set.BoolVar(&f.all, "all", false, "with --cleanup: what no living daemon holds, of whatever state directory")
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

// complete fills in the defaults of paths that no flag gave and makes all of them absolute.
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

// run is the life of the daemon.
func run(log *slog.Logger, f flags) (err error) {
	if err := f.complete(); err != nil {
		return err
	}
	c, err := readConfig(f.config, f.explicit["config"])
	if err != nil {
		return err
	}
	// From here a signal is an order to end tidily, whatever is under way.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		log.Info("ending", "signal", (<-signals).String())
		cancel()
		<-signals
		os.Exit(130)
	}()
	raiseFiles(log)
	closeInherited(log)

	root := os.Getuid() == 0
	// VMMs and what works on their disks inherit descriptors. An earlier banger left these open.
	imagesDir := filepath.Join(f.state, "images")
	for _, dir := range []string{f.state, imagesDir} {
		if err := errors.Join(host.MakeDirs(dir, 0o700), os.Chmod(dir, 0o700)); err != nil {
			return fmt.Errorf("cannot make the state directory: %w", err)
		}
	}
	locked, err := lock(f.state)
	if err != nil {
		return err
	}
	defer locked.Close()
	id, err := instance(f.state)
	if err != nil {
		return fmt.Errorf("cannot tell the state directory's instance: %w", err)
	}

	jobs := host.NewJobs(c.VMUIDBase)
	images, err := image.Open(image.Options{Dir: imagesDir, Log: log, Jobs: jobs,
		Limits: image.Limits{Bytes: int64(c.ImageMaxSize), Files: c.ImageMaxFiles}})
	if err != nil {
		return fmt.Errorf("cannot open the images: %w", err)
	}
	net, netMode, err := openNetwork(log, c, id, root)
	if err != nil {
		return err
	}
	records, err := store.Open(ctx, filepath.Join(f.state, "banger.db"))
	if err != nil {
		return err
	}
	defaults := c.VM
	defaults.VMM, defaults.Net = "qemu", netMode
	o := vmm.Options{StateDir: f.state, Store: records, Drivers: drivers(log, c, f.fake),
		Network: net, Images: images, Log: log, Defaults: defaults}
	if root && c.VMUIDBase != 0 {
		o.VMUIDBase = c.VMUIDBase
		warnOfUIDs(log, c.VMUIDBase)
	}
	names := listenNames(log, c, net)
	if names != nil {
		o.DNS = names.Addresses()
	}
	manager, err := vmm.Open(ctx, o)
	if err != nil {
		return errors.Join(err, records.Close())
	}
	closing := func(what string, end func(context.Context) error) {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		if e := end(ctx); e != nil {
			err = errors.Join(err, fmt.Errorf("cannot %s: %w", what, e))
		}
	}
	defer closing("release the network", func(context.Context) error { return net.Release() })
	defer closing("close the records", manager.Close)
	images.Serve(manager)
	defer images.Close()
	reads := collector.New(collector.Options{Manager: manager, Log: log, StatsMaxAge: c.StatsMaxAge, PortsMaxAge: c.PortsMaxAge,
		HealthMaxAge: c.HealthMaxAge, PollInterval: c.PollInterval, Network: net})
	defer reads.Close()
	defer closing("end the service of names", serveNames(log, c, names, manager))

	figures := metrics.New(metrics.Options{Manager: manager, Collector: reads, Version: version, Store: records.Counts})
	text := c.text(f.paths)
	archives := archive.New(archive.Options{Manager: manager, Images: images, Jobs: jobs})
	server, err := fs.Mount(ctx, fs.Options{Dir: f.mount, Manager: manager, Archives: archives, Collector: reads, Images: images, Metrics: figures, Version: version,
		Config: func() string { return text }, Log: log, Group: group(log, c.Group, root), AllowOther: root || allowOther()})
	if err != nil {
		return err
	}
	defer closing("unmount "+f.mount, server.Unmount)
	if c.MetricsListen != notServed {
		stop, err := serveMetrics(log, c.MetricsListen, figures.Handler())
		switch {
		case errors.Is(err, unix.EADDRINUSE): // any local user can listen there
			log.Error("no metrics are served: end what listens there and start bangerd again", "err", err)
		case err != nil:
			return err
		default:
			defer closing("end the service of metrics", stop)
		}
	}
	log.Info("serving", "mount", f.mount, "state_dir", f.state, "vms", len(manager.VMs()), "version", version)
	notify(log, daemon.SdNotifyReady)
	giveMemoryBack(ctx)
	notify(log, daemon.SdNotifyStopping)
	return nil
}

func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("systemd not told", "err", err)
	}
}

// openNetwork gives the network and the default `net` of new VMs. A host that cannot have the bridge still has
// user networking; a configuration that makes no sense ends the daemon.
func openNetwork(log *slog.Logger, c config, instance string, root bool) (vmm.Network, vmm.NetMode, error) {
	if !root {
		return network.Unprivileged(), vmm.NetUser, nil
	}
	prefix6 := c.Subnet6.prefix
	if !prefix6.IsValid() && !c.Subnet6.off {
		prefix6 = network.LocalPrefix6(instance)
	}
	n, err := network.New(network.Options{Bridge: c.Bridge, Prefix: c.Subnet, Prefix6: prefix6, NAT: bool(c.NAT), LAN: bool(c.LAN),
		GuestToHost: bool(c.GuestToHost), Uplink: c.Uplink, MTU: int(c.MTU), Instance: instance, Log: log})
	switch {
	case err == nil:
		return n, vmm.NetBridge, nil
	case errors.Is(err, vmm.ErrInvalid):
		return nil, "", err
	}
	log.Warn("no bridge, so new VMs get net = user", "err", err)
	return network.Without(err), vmm.NetUser, nil
}

// drivers returns the real driver first. Where QEMU cannot be used, the daemon serves all the same,
// and a start and `vmms` say why.
func drivers(log *slog.Logger, c config, withFake bool) []vmm.Driver {
	var all []vmm.Driver
	if d, err := qemu.New(qemu.Options{Binary: c.QEMU, Accel: c.Accel, Machine: c.Machine, UserWorld: bool(c.UserWorld), Log: log}); err == nil {
		all = append(all, d)
	} else {
		log.Warn("no QEMU", "err", err)
		can := vmm.Capabilities{Name: "qemu", Unusable: err.Error()}
		all = append(all, vmm.BaseDriver{Can: can})
	}
	if withFake {
		all = append(all, fake.New())
	}
	return all
}

// group is the gid whose members may create VMs: the user's own for a user, root's where there is no such group.
func group(log *slog.Logger, name string, root bool) int {
	if !root {
		return os.Getgid()
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		log.Debug("only root may create VMs", "err", err)
		return 0
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return 0
	}
	return gid
}

// allowOther reports whether fuse.conf lets a user open a mount to others (mount.fuse3(8)).
func allowOther() bool {
	b, err := os.ReadFile("/etc/fuse.conf")
	if err != nil {
		return false
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if strings.TrimSpace(line) == "user_allow_other" {
			return true
		}
	}
	return false
}

// closeInherited keeps descriptors that whoever started the daemon left open from the programs
// that the daemon starts, VMMs above all.
func closeInherited(log *slog.Logger) {
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		log.Warn("inherited descriptors are not closed in VMMs: this needs Linux 5.11", "err", err)
	}
}

// raiseFiles lifts the limit of open files: each running VM holds a few.
func raiseFiles(log *slog.Logger) {
	const want = 1 << 20
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return
	}
	if l.Max < want && unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: want, Max: want}) == nil {
		return
	}
	l.Cur = l.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		log.Debug("limit of open files not raised", "err", err)
	}
}
