package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
)

// portsAtOnce bounds the VMs whose ports are read in parallel.
const portsAtOnce = 16

func (c *client) portsCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ports NAME | ports -a",
		Short: "List the listening ports of a VM, or of all running ones",
		Long: "List the listening ports of a VM:\n" +
			"scheme, port, endpoint, bind address, pid, process, command line.\n" +
			"Prints the file `ports`; with -a of all running VMs, each line after the VM's name.",
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: c.completeVMs(1),
	}
	twin := jsonFlag(cmd)
	all := cmd.Flags().BoolP("all", "a", false, "of all running VMs; as JSON one list for each VM")
	ofAll := c.onTree(func([]string) error { return c.allPorts(twin("ports")) })
	ofVM := c.onVM(func(v vm, _ []string) error {
		return c.show("cannot list the ports of "+v.name, v.file(twin("ports")))
	})
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case *all == (len(args) == 1):
			return errors.New("give the name of one VM, or -a for all")
		case *all:
			return ofAll(cmd, args)
		}
		return ofVM(cmd, args)
	}
	return cmd
}

// allPorts prints a file of all running VMs, ordered by name. It returns the first error.
func (c *client) allPorts(file string) error {
	names := c.tree.names("vms")
	type answer struct {
		text string
		err  error
	}
	answers := make(map[string]*answer, len(names))
	slots := make(chan struct{}, portsAtOnce)
	var reads sync.WaitGroup
	for _, name := range names {
		a := new(answer)
		answers[name] = a
		reads.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			a.text, a.err = read(c.tree.file("vms/" + name + "/" + file))
		})
	}
	reads.Wait()
	width := 0
	asJSON, byName := file == "ports.json", map[string]json.RawMessage{}
	for name, a := range answers {
		if a.err == nil && a.text != "" {
			width = max(width, len(name))
			byName[name] = json.RawMessage(a.text)
		}
	}
	first := c.each(names, func(name string) error {
		switch a := answers[name]; {
		case errors.Is(a.err, syscall.EHOSTDOWN): // not running
		case errors.Is(a.err, syscall.ENOENT): // removed meanwhile
		case a.err != nil:
			return explain("cannot list the ports of "+name, "", a.err)
		case !asJSON:
			for _, line := range lines(a.text) {
				fmt.Fprintf(c.std.out, "%-*s  %s\n", width, name, line)
			}
		}
		return nil
	})
	if asJSON {
		b, err := json.Marshal(byName)
		if err != nil {
			return &failure{exitFailed, err}
		}
		fmt.Fprintf(c.std.out, "%s\n", b)
	}
	return first
}
