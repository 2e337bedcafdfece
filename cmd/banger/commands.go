package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"banger/internal/printable"
)

// client is the state of one invocation.
type client struct {
	std   stdio
	mount string
}

func (c *client) tree() tree { return tree(c.mount) }

func newRoot(std stdio) *cobra.Command {
	c := &client{std: std}
	root := &cobra.Command{
		Use:           "banger",
		Short:         "Work virtual machines through the files that bangerd serves",
		Long:          "Work virtual machines through the files that bangerd serves.\nAll that banger does can be done with the files alone, see banger(5).\n\n" + exitHelp,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().StringVar(&c.mount, "mount", defaultMount(), "directory that bangerd serves, also $BANGER_MOUNT")
	root.AddCommand(c.runCmd(), c.lsCmd(), c.statusCmd())
	for _, x := range []struct{ word, short string }{
		{"start", "Start VMs; returns when their CPUs run"},
		{"stop", "Stop VMs tidily; returns when they are gone"},
		{"restart", "Stop and start VMs"},
		{"kill", "End VMs at once"},
		{"pause", "Stop the CPUs of VMs"},
		{"resume", "Let the CPUs of paused VMs run again"},
	} {
		root.AddCommand(c.stateCmd(x.word, x.short))
	}
	root.AddCommand(c.execCmd(), c.proxyCmd(), c.sshConfigCmd(), c.imageCmd(), c.snapshotCmd(), c.exportCmd(), c.importCmd(), c.cpCmd(), c.syncCmd())
	root.AddCommand(c.rmCmd(), c.consoleCmd(), c.logsCmd(), c.portsCmd(), c.waitCmd(), c.topCmd(), c.eventsCmd())
	return root
}

// complete offers the names of VMs, once each, at most limit of them (0: any number).
func (c *client) complete(limit int) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if limit > 0 && len(args) >= limit {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var out []string
		for _, name := range c.tree().names() {
			given := false
			for _, a := range args {
				given = given || a == name
			}
			if !given {
				out = append(out, name)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

// show prints a file as it is.
func (c *client) show(doing, path, errorFile string) error {
	text, err := read(path)
	if err != nil {
		return explain(doing, errorFile, err)
	}
	if _, err = io.WriteString(c.std.out, text); err != nil {
		return &failure{exitFailed, err}
	}
	return nil
}

// each does something to every VM named, and fails as the first that failed.
func (c *client) each(names []string, do func(name, dir string) error) error {
	return c.eachOf(names, func(name string) error {
		dir, err := c.tree().vm(name)
		if err != nil {
			return err
		}
		return do(name, dir)
	})
}

// eachOf does something for every name, and fails as the first that failed.
func (c *client) eachOf(names []string, do func(name string) error) error {
	var first error
	for _, name := range names {
		err := do(name)
		switch {
		case err == nil:
		case first == nil:
			first = err
		default:
			fmt.Fprintln(c.std.err, "banger:", printable.Message(err.Error()))
		}
	}
	return first
}

func (c *client) lsCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "ls", Short: "List the VMs", Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		Long: "List the VMs: name, state, health as last known, CPU percent, resident bytes, address, uptime, image.\nPrints the file `list`.",
		RunE: func(*cobra.Command, []string) error {
			if err := c.tree().check(); err != nil {
				return err
			}
			return c.show("cannot list the VMs", c.tree().top(twin("list", asJSON)), "")
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func jsonFlag(cmd *cobra.Command, to *bool) {
	cmd.Flags().BoolVar(to, "json", false, "print the file's .json twin")
}

func twin(file string, asJSON bool) string {
	if asJSON {
		return file + ".json"
	}
	return file
}

func (c *client) statusCmd() *cobra.Command {
	var asJSON, watch bool
	cmd := &cobra.Command{
		Use: "status [NAME]", Short: "Show a VM's state, health and figures, or the host's", Args: cobra.MaximumNArgs(1), ValidArgsFunction: c.complete(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if watch {
				return c.watch(func() error { return c.status(args, asJSON) })
			}
			return c.status(args, asJSON)
		},
	}
	jsonFlag(cmd, &asJSON)
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "again every second, until Ctrl-C or an error")
	return cmd
}

// status prints the figures of the VM named, or the host's.
func (c *client) status(args []string, asJSON bool) error {
	if len(args) == 0 {
		if err := c.tree().check(); err != nil {
			return err
		}
		return c.show("cannot read the host's figures", c.tree().top(twin("stats", asJSON)), "")
	}
	name := args[0]
	dir, err := c.tree().vm(name)
	if err != nil {
		return err
	}
	if !asJSON {
		for _, file := range []string{"health", "address", "error"} {
			text, err := read(filepath.Join(dir, file))
			if err != nil {
				return explain("cannot read "+file+" of "+name, "", err)
			}
			if text = strings.TrimSpace(text); text != "" {
				fmt.Fprintf(c.std.out, "%s %s\n", file, text)
			}
		}
	}
	return c.show("cannot read the figures of "+name, filepath.Join(dir, twin("stats", asJSON)), "")
}

func (c *client) stateCmd(word, short string) *cobra.Command {
	return &cobra.Command{
		Use: word + " NAME...", Short: short, Args: cobra.MinimumNArgs(1), ValidArgsFunction: c.complete(0),
		RunE: func(_ *cobra.Command, args []string) error {
			return c.each(args, func(name, dir string) error { return command(name, dir, word) })
		},
	}
}

// command gives a VM a command and waits until it is done.
func command(name, dir, word string) error {
	return explain("cannot "+word+" "+name, filepath.Join(dir, "error"), write(filepath.Join(dir, "state"), word+"\n"))
}

func (c *client) rmCmd() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm NAME...", Short: "Destroy stopped VMs and their disks", Args: cobra.MinimumNArgs(1), ValidArgsFunction: c.complete(0),
		RunE: func(_ *cobra.Command, args []string) error {
			return c.each(args, func(name, dir string) error {
				if force {
					if err := command(name, dir, "kill"); err != nil {
						return err
					}
				}
				return explain("cannot remove "+name, c.tree().top("error"), syscall.Rmdir(dir))
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "kill them first")
	return cmd
}

// waitWords are what can be waited for beside tcp/PORT.
var waitWords = []string{"healthy", "running", "stopped", "paused"}

// parseWait gives the file below wait/ for what a user waits for.
func parseWait(what string) (string, error) {
	for _, w := range waitWords {
		if what == w {
			return what, nil
		}
	}
	if port, ok := strings.CutPrefix(what, "tcp/"); ok {
		if n, err := strconv.Atoi(port); err == nil && n >= 1 && n <= 65535 {
			return "tcp/" + strconv.Itoa(n), nil
		}
	}
	return "", fmt.Errorf("cannot wait for %q: give one of %s, tcp/PORT", what, strings.Join(waitWords, ", "))
}

func (c *client) waitCmd() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "wait NAME [healthy|running|stopped|paused|tcp/PORT]", Short: "Wait until a VM is so, healthy by default; print the seconds it took",
		Args: cobra.RangeArgs(1, 2),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, to string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return append(waitWords[:len(waitWords):len(waitWords)], "tcp/"), cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
			}
			return c.complete(1)(cmd, args, to)
		},
		RunE: func(_ *cobra.Command, args []string) error {
			what := "healthy"
			if len(args) == 2 {
				var err error
				if what, err = parseWait(args[1]); err != nil {
					return err
				}
			}
			dir, err := c.tree().vm(args[0])
			if err != nil {
				return err
			}
			took, err := wait(args[0], dir, what, timeout, nil)
			if err == nil {
				fmt.Fprintln(c.std.out, took)
			}
			return err
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "give up after this long, e.g. 30s (0: never)")
	return cmd
}

// wait blocks until the VM is as said, and gives the seconds that took as the file tells them. tick, if not nil, is called now and then meanwhile.
// After a timeout the blocked read is left to the end of the process.
func wait(name, dir, what string, timeout time.Duration, tick func()) (string, error) {
	type answer struct {
		text string
		err  error
	}
	done := make(chan answer, 1)
	go func() {
		text, err := read(filepath.Join(dir, "wait", what))
		done <- answer{strings.TrimSpace(text), err}
	}()
	var late <-chan time.Time
	if timeout > 0 {
		timer := time.NewTimer(timeout)
		defer timer.Stop()
		late = timer.C
	}
	var ticks <-chan time.Time
	if tick != nil {
		ticker := time.NewTicker(100 * time.Millisecond)
		defer ticker.Stop()
		ticks = ticker.C
	}
	for {
		select {
		case a := <-done:
			return a.text, explain("cannot wait for "+name+" to be "+what, filepath.Join(dir, "error"), a.err)
		case <-late:
			return "", &failure{exitTimeout, fmt.Errorf("%s is not %s after %v", name, what, timeout)}
		case <-ticks:
			tick()
		}
	}
}

func (c *client) runCmd() *cobra.Command {
	var image, memory string
	var publish []string
	var cpus int
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "run NAME", Short: "Create a VM, start it and wait until it is healthy", Args: cobra.ExactArgs(1), ValidArgsFunction: cobra.NoFileCompletions,
		Long: "Create a VM, start it and wait until it is healthy.\nWhere that fails the VM is left as it is, for its files `error`, `log` and `console` to be read; `banger rm -f NAME` removes it.",
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			dir, err := c.tree().dir(name)
			if err != nil {
				return err
			}
			if isSource(image) {
				source := image
				image = imageName(source)
				if err := c.makeImage(image, source, false); err != nil {
					return err
				}
			}
			if err := os.Mkdir(dir, 0o777); err != nil {
				if errors.Is(err, syscall.EEXIST) {
					return &failure{exitFailed, fmt.Errorf("%s exists already; `banger start %s` starts it", name, name)}
				}
				return explain("cannot create "+name, c.tree().top("error"), err)
			}
			settings := ""
			for _, x := range []struct{ flag, key, value string }{
				{"image", "image", image}, {"cpus", "cpus", strconv.Itoa(cpus)}, {"memory", "memory", memory},
			} {
				if cmd.Flags().Changed(x.flag) {
					settings += x.key + " " + x.value + "\n"
				}
			}
			if len(publish) > 0 {
				err := write(filepath.Join(dir, "publish"), strings.Join(publish, "\n")+"\n")
				if err := explain("cannot publish ports of "+name, filepath.Join(dir, "error"), err); err != nil {
					return err
				}
			}
			return c.boot(name, dir, settings, timeout)
		},
	}
	cmd.Flags().StringVarP(&image, "image", "i", "", "image to boot, a directory of images/, or a source such as debian:bookworm (default: the daemon's)")
	cmd.Flags().IntVarP(&cpus, "cpus", "c", 1, "number of CPUs")
	cmd.Flags().StringVarP(&memory, "memory", "m", "", "memory, e.g. 192M (default: the image's)")
	cmd.Flags().StringArrayVarP(&publish, "publish", "p", nil, "lead a port of the host to one of the guest, [HOST:]PORT:GUESTPORT[/PROTO], also more than once")
	cmd.Flags().DurationVar(&timeout, "timeout", time.Minute, "give up waiting after this long (0: never)")
	_ = cmd.RegisterFlagCompletionFunc("image", c.completeImages)
	return cmd
}

// boot configures a new VM, starts it and waits until it is healthy.
func (c *client) boot(name, dir, settings string, timeout time.Duration) error {
	if settings != "" {
		if err := explain("cannot configure "+name, filepath.Join(dir, "error"), write(filepath.Join(dir, "config"), settings)); err != nil {
			return err
		}
	}
	progress := newProgress(c.std.err, name)
	if err := command(name, dir, "start"); err != nil {
		return err
	}
	took, err := wait(name, dir, "healthy", timeout, progress.tick)
	progress.end()
	if err != nil {
		return err
	}
	line := name + " is healthy after " + took + " s"
	if address, err := read(filepath.Join(dir, "address")); err == nil && strings.TrimSpace(address) != "" {
		line += " at " + strings.TrimSpace(address)
	}
	fmt.Fprintln(c.std.out, line)
	return nil
}

// progress is a line on a terminal that tells how long a boot takes.
type progress struct {
	to    *os.File // nil: no terminal, say nothing
	name  string
	begun time.Time
}

func newProgress(w io.Writer, name string) *progress {
	p := &progress{name: name, begun: time.Now()}
	if f, ok := terminal(w); ok {
		p.to = f
	}
	return p
}

func (p *progress) tick() {
	if p.to != nil {
		fmt.Fprintf(p.to, "\r%s is booting, %.1f s\x1b[K", p.name, time.Since(p.begun).Seconds())
	}
}

func (p *progress) end() {
	if p.to != nil {
		fmt.Fprint(p.to, "\r\x1b[K")
	}
}
