package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"banger/collector"
	"banger/collector/metrics"
	"banger/fs"
	"banger/internal/audit"
	"banger/internal/host"
	"banger/vmm"
	"banger/vmm/archive"
	"banger/vmm/cgroup"
	"banger/vmm/image"
	"banger/vmm/store"
)

// closeTimeout bounds the wait of each part at the end, for the transitions that run.
const closeTimeout = 15 * time.Second

// service is the daemon: its settings and its open parts.
type service struct {
	flags
	config config
	log    *slog.Logger
	root   bool

	manager *vmm.Manager
	audit   *audit.Log
	subuids host.Subuids
	closers []func() error // in the order of opening
}

// run serves until a signal ends it.
func run(log *slog.Logger, f flags) (err error) {
	if err := giveUpRights(); err != nil {
		log.Warn("the daemon keeps all its rights", "err", err)
	}
	logRights(log)
	if err := f.complete(); err != nil {
		return err
	}
	c, err := readConfig(f.config, f.explicit["config"])
	if err != nil {
		return err
	}
	ctx, cancel := untilSignal(log)
	defer cancel()
	raiseFiles(log)
	closeInherited(log)
	lastToDie(log)
	// Writes beyond a limit of files fail. VMMs inherit that: otherwise such a write would end them.
	signal.Ignore(syscall.SIGXFSZ)

	s := &service{flags: f, config: c, log: log, root: os.Getuid() == 0}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.open(ctx); err != nil {
		return err
	}
	log.Info("serving", "mount", f.mount, "state_dir", f.state,
		"vms", len(s.manager.VMs()), "version", version)
	notify(log, daemon.SdNotifyReady)
	giveMemoryBack(ctx)
	notify(log, daemon.SdNotifyStopping)
	return nil
}

// untilSignal returns a context that ends with the first signal. The second one ends the process.
func untilSignal(log *slog.Logger) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		log.Info("ending", "signal", (<-signals).String())
		cancel()
		<-signals
		os.Exit(130)
	}()
	return ctx, cancel
}

// onClose registers the end of an opened part. Parts end in the opposite order.
func (s *service) onClose(doing string, end func(context.Context) error) {
	s.closers = append(s.closers, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		if err := end(ctx); err != nil {
			return fmt.Errorf("cannot %s: %w", doing, err)
		}
		return nil
	})
}

func (s *service) close() error {
	var errs []error
	for _, end := range slices.Backward(s.closers) {
		errs = append(errs, end())
	}
	return errors.Join(errs...)
}

// open opens all parts. After an error the opened ones are still to be closed.
func (s *service) open(ctx context.Context) error {
	id, err := s.claimState()
	if err != nil {
		return err
	}
	c, log := &s.config, s.log
	memory := hostMemory(log)
	c.completeQuotas(log, s.state, memory)
	jobs := host.NewJobs(c.VMUIDBase)
	images, err := image.Open(image.Options{Dir: s.imagesDir(), Log: log, Jobs: jobs,
		User:   s.subuids.User,
		Limits: image.Limits{Bytes: int64(c.ImageMaxSize), Files: c.ImageMaxFiles}})
	if err != nil {
		return fmt.Errorf("cannot open the images: %w", err)
	}
	net, netMode, err := openNetwork(log, s.config, id, s.root)
	if err != nil {
		return err
	}
	if err := s.openAudit(); err != nil {
		return err
	}
	records, err := store.Open(ctx, filepath.Join(s.state, "banger.db"))
	if err != nil {
		return err
	}
	groups := cgroup.Open(log, id)
	s.onClose("remove the cgroups", func(context.Context) error { groups.Close(); return nil })
	defaults := c.VM
	defaults.VMM, defaults.Net = "qemu", netMode
	o := vmm.Options{StateDir: s.state, Store: records,
		Drivers: drivers(log, s.config, groups, s.fake),
		Network: net, Images: images, Log: log, Defaults: defaults, Acted: s.acted,
		Quotas: c.amounts(), UID: uint32(os.Getuid()), User: s.subuids.User,
		HostMemory: c.overcommitted(memory)}
	if s.root && c.VMUIDBase != 0 {
		o.VMUIDBase = c.VMUIDBase
		warnOfUIDs(log, c.VMUIDBase)
	}
	names := listenNames(log, s.config, net)
	if names != nil {
		o.DNS = names.Addresses()
	}
	if s.manager, err = vmm.Open(ctx, o); err != nil {
		return errors.Join(err, records.Close())
	}
	s.onClose("release the network", func(context.Context) error { return net.Release() })
	s.onClose("close the records", s.manager.Close)
	images.Serve(s.manager)
	s.onClose("close the images", func(context.Context) error { images.Close(); return nil })
	reads := collector.New(collector.Options{Manager: s.manager, Log: log, Network: net,
		StatsMaxAge: c.StatsMaxAge, PortsMaxAge: c.PortsMaxAge,
		HealthMaxAge: c.HealthMaxAge, PollInterval: c.PollInterval})
	s.onClose("close the collector", func(context.Context) error { reads.Close(); return nil })
	s.onClose("end the service of names", serveNames(log, s.config, names, s.manager))

	figures := metrics.New(metrics.Options{Manager: s.manager, Collector: reads,
		Version: version, Store: records.Counts})
	text := c.text(s.paths)
	archives := archive.New(archive.Options{Manager: s.manager, Images: images, Jobs: jobs})
	server, err := fs.Mount(ctx, fs.Options{Dir: s.mount, Manager: s.manager, Archives: archives,
		Collector: reads, Images: images, Metrics: figures, Version: version, Log: log,
		Config: func() string { return text }, Group: group(log, c.Group, s.root), Audit: s.audit,
		AllowOther: s.root || allowOther()})
	if err != nil {
		return err
	}
	s.onClose("unmount "+s.mount, server.Unmount)
	if c.MetricsListen == notServed {
		return nil
	}
	stop, err := serveMetrics(log, c.MetricsListen, figures.Handler())
	if errors.Is(err, unix.EADDRINUSE) { // any local user can listen there
		log.Error("no metrics are served: stop the other listener, restart bangerd", "err", err)
		return nil
	}
	if err == nil {
		s.onClose("end the service of metrics", stop)
	}
	return err
}

func (s *service) imagesDir() string { return filepath.Join(s.state, "images") }

// claimState makes the state directory, locks it until the service closes, and returns its
// instance.
func (s *service) claimState() (string, error) {
	for _, dir := range []string{s.state, s.imagesDir()} {
		// An earlier banger let other users read them.
		if err := errors.Join(host.MakeDirs(dir, 0o700), os.Chmod(dir, 0o700)); err != nil {
			return "", fmt.Errorf("cannot make the state directory: %w", err)
		}
	}
	locked, err := lock(s.state)
	if err != nil {
		return "", err
	}
	s.onClose("unlock the state directory", func(context.Context) error { return locked.Close() })
	id, err := instance(s.state)
	if err != nil {
		return "", fmt.Errorf("cannot read the instance of the state directory: %w", err)
	}
	return id, nil
}

func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("systemd was not notified", "err", err)
	}
}
