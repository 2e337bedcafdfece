package main

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// runOrder is what `banger run` is asked for.
type runOrder struct {
	name     string   // empty: a new one
	image    string   // or a source; empty: the daemon's image
	settings string   // lines of `config`
	set      []string // NAME=VALUE of other settings
	publish  []string
	timeout  time.Duration
	remove   bool
	command  []string
	exec     execFlags // of the command
}

const runHelp = `Create a VM, start it and wait until it is healthy.
With a COMMAND, run that in the guest as banger exec does, with the standard input.
Without a NAME the VM gets a new one, which is printed.

A VM that fails while it boots is kept for its files ` + "`error`, `log` and `console`" + `, and
Ctrl-C leaves the VM as it is. ` + "`banger rm -f NAME`" + ` removes it. A VM that cannot be
configured, or whose image is not there, is removed at once.

With --rm the VM is a process: it lives as long as banger does, and is removed at the end, also when
its boot fails and when banger is killed. Without a COMMAND banger prints the console until the
guest has powered itself off. INT, TERM and HUP go to the COMMAND, or stop the guest; what has not
ended 10 s later is killed, and a second signal kills at once.

The exit code with a COMMAND is that of banger exec. Without one it is that of the image's program,
0 for a guest that powered itself off, and 128+N after signal N. It is 125 if banger fails.`

func (c *client) runCmd() *cobra.Command {
	var r runOrder
	cmd := &cobra.Command{
		Use: "run [flags] [NAME] [-- COMMAND [ARGUMENT...]]", Short: "Create a VM and start it",
		Long: runHelp, ValidArgsFunction: cobra.NoFileCompletions,
	}
	flags := cmd.Flags()
	flags.StringVarP(&r.image, "image", "i", "",
		"`IMAGE` to boot, or a source such as debian:bookworm (default: the daemon's image)")
	flags.StringVar(&r.name, "name", "", "the VM's `NAME`, in place of the argument")
	flags.IntP("cpus", "c", 1, "`COUNT` of CPUs")
	flags.StringP("memory", "m", "", "memory of this `SIZE`, e.g. 192M (default: the image's)")
	flags.StringP("disk", "d", "", "a disk of its own of this `SIZE`, e.g. 10G (default: none)")
	flags.StringArrayVar(&r.set, "set", nil,
		"another setting, `NAME=VALUE`, e.g. net=none; may be repeated")
	flags.StringArrayVarP(&r.publish, "publish", "p", nil,
		"forward a `PORT` of the host, [HOST:]PORT:GUESTPORT[/PROTO]; may be repeated")
	flags.DurationVar(&r.timeout, "timeout", time.Minute, "`TIME` that the boot may take (0: any)")
	flags.BoolVar(&r.remove, "rm", false, "stay in the foreground and remove the VM at the end")
	flags.BoolVarP(&r.exec.terminal, "tty", "t", false, "run the COMMAND on a terminal; "+
		"without one, use the console as a terminal")
	addCommandFlags(flags, &r.exec)
	_ = cmd.RegisterFlagCompletionFunc("image", c.completeImages)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := r.parse(args, cmd.ArgsLenAtDash()); err != nil {
			return err
		}
		var settings strings.Builder
		for _, name := range []string{"cpus", "memory", "disk"} {
			if flags.Changed(name) {
				settings.WriteString(name + " " + flags.Lookup(name).Value.String() + "\n")
			}
		}
		r.settings = settings.String()
		err := c.run(&r)
		if r.remove || len(r.command) > 0 {
			return asCommand(err)
		}
		return err
	}
	return cmd
}

// parse takes the name and the command from the arguments, of which the first named are before --.
func (r *runOrder) parse(args []string, named int) error {
	if named < 0 {
		named = len(args)
	}
	names := args[:named]
	r.command = args[named:]
	if r.name != "" {
		names = append([]string{r.name}, names...)
	}
	for _, s := range r.set {
		if !strings.Contains(s, "=") {
			return fmt.Errorf("--set takes NAME=VALUE, not %q", s)
		}
	}
	switch {
	case len(names) > 1 && r.name == "" && len(r.command) == 0:
		return fmt.Errorf("%q is one argument too many; a command stands after --, as in "+
			"banger run %s -- %s", names[1], names[0], strings.Join(names[1:], " "))
	case len(names) > 1:
		return fmt.Errorf("a VM has one name, not %s", strings.Join(names, " and "))
	case len(names) == 1 && names[0] == "":
		return errors.New("the name of the VM is empty")
	case len(names) == 1:
		r.name = names[0]
	}
	if len(r.command) > 0 {
		r.exec.input = true
		return nil
	}
	if len(r.exec.env) > 0 || r.exec.user != "" || r.exec.dir != "" {
		return errors.New("-e, -u and -w are for a COMMAND: the image itself says how its program " +
			"runs. Give a command after --")
	}
	if r.exec.terminal && !r.remove {
		return errors.New("-t needs a COMMAND or --rm; `banger console NAME` shows the console")
	}
	return nil
}

// run creates a VM and starts it. It returns commandEnded for the status of a command or program.
func (c *client) run(r *runOrder) error {
	if err := c.tree.check(); err != nil {
		return err
	}
	if err := c.findImage(r); err != nil {
		return err
	}
	if r.remove {
		return c.runOnce(r)
	}
	named := r.name != ""
	v, err := c.create(r, func(v vm) error { return os.Mkdir(v.dir, 0o777) })
	if err != nil {
		return err
	}
	if err := c.configure(v, r); err != nil {
		return errors.Join(err, c.removeNew(v))
	}
	sentence, err := c.boot(v, r.timeout)
	if err != nil {
		if state, e := readTrimmed(v.file("state")); e == nil && state == "stopped" {
			err = errors.Join(err, c.removeNew(v)) // it was refused, and nothing ran
		}
		return err
	}
	switch {
	case len(r.command) > 0:
		fmt.Fprintln(c.std.err, sentence)
		return c.exec(v.name, r.command, &r.exec)
	case named:
		fmt.Fprintln(c.std.out, sentence)
	default: // so that NAME=$(banger run) works
		fmt.Fprintln(c.std.err, sentence)
		fmt.Fprintln(c.std.out, v.name)
	}
	return nil
}

// findImage makes the image of a source, or makes sure that there is an image of that name.
func (c *client) findImage(r *runOrder) error {
	if source := r.image; isSource(source) {
		r.image = imageName(source)
		return c.makeImage(r.image, source, false)
	}
	if r.image == "" {
		return nil
	}
	_, err := os.Stat(c.image(r.image))
	if isName(r.image) && (err == nil || !errors.Is(err, fs.ErrNotExist)) {
		return nil
	}
	if r.image == "t" { // -it, as for exec
		return failf(exitFailed, "no image is called t: -i names the image here; "+
			"-t alone gives a COMMAND a terminal, and it always gets the standard input")
	}
	return failf(exitFailed, "no image is called %s%s", r.image,
		didYouMean(r.image, c.tree.names("images")))
}

// create makes a VM of the name in the order or, without one, of a new name.
func (c *client) create(r *runOrder, begin func(vm) error) (v vm, err error) {
	const attempts = 16 // to find a name that is free
	for n := 0; ; n++ {
		v, err = c.tree.newVM(cmp.Or(r.name, newName(r.image)))
		if err != nil {
			return vm{}, err
		}
		err = begin(v)
		if !errors.Is(err, fs.ErrExist) || r.name != "" || n >= attempts {
			break
		}
	}
	if errors.Is(err, fs.ErrExist) {
		return vm{}, failf(exitFailed, "%s exists already; `banger start %[1]s` starts it", v.name)
	}
	return v, explain("cannot create "+v.name, c.tree.file("error"), err)
}

// newName returns a name for a VM of an image, such as debian-bookworm-x3fa.
func newName(image string) string {
	const letters = 4
	end := "-" + strings.ToLower(rand.Text()[:letters])
	image = cmp.Or(image, "vm")
	return strings.TrimRight(image[:min(len(image), 63-len(end))], "-") + end
}

// configure sets what the order has about a new VM.
func (c *client) configure(v vm, r *runOrder) error {
	settings := r.settings
	if r.image != "" {
		settings = "image " + r.image + "\n" + settings
	}
	if err := v.checkSettings(r.set); err != nil {
		return err
	}
	for _, s := range r.set {
		name, value, _ := strings.Cut(s, "=")
		settings += name + " " + value + "\n"
	}
	if settings != "" {
		err := write(v.file("config"), settings)
		if err := v.explain("cannot configure "+v.name, err); err != nil {
			return err
		}
	}
	if len(r.publish) == 0 {
		return nil
	}
	err := write(v.file("publish"), strings.Join(r.publish, "\n")+"\n")
	return v.explain("cannot publish ports of "+v.name, err)
}

// checkSettings refuses NAME=VALUE whose name `config` does not have.
func (v vm) checkSettings(set []string) error {
	if len(set) == 0 {
		return nil
	}
	config, err := read(v.file("config"))
	if err != nil {
		return explain("cannot read the settings of "+v.name, "", err)
	}
	var names []string
	for _, line := range lines(config) {
		name, _, _ := strings.Cut(line, " ")
		names = append(names, name)
	}
	for _, s := range set {
		name, _, _ := strings.Cut(s, "=")
		if !slices.Contains(names, name) {
			return failf(exitFailed, "a VM has no setting %s%s", name, didYouMean(name, names))
		}
	}
	return nil
}

// removeNew removes a VM that never ran.
func (c *client) removeNew(v vm) error {
	return explain("cannot remove "+v.name, c.tree.file("error"), syscall.Rmdir(v.dir))
}

// boot starts a VM, waits until it is healthy and returns a sentence about it.
func (c *client) boot(v vm, timeout time.Duration) (string, error) {
	screen, onTerminal := terminal(c.std.err)
	line := progress{screen: screen}
	var tick func()
	if began := time.Now(); onTerminal {
		tick = func() { line.show("%s is booting, %.1f s", v.name, time.Since(began).Seconds()) }
	}
	if err := v.command("start"); err != nil {
		return "", err
	}
	took, err := v.wait("healthy", timeout, tick)
	line.clear()
	if err != nil {
		return "", err
	}
	healthy := v.name + " is healthy after " + took + " s"
	if address, err := readTrimmed(v.file("address")); err == nil && address != "" {
		healthy += " at " + address
	}
	return healthy, nil
}
