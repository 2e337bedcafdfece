package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"banger/internal/printable"
)

// portsAtOnce bounds the VMs whose ports are read side by side.
const portsAtOnce = 16

func (c *client) portsCmd() *cobra.Command {
	var asJSON, all bool
	cmd := &cobra.Command{
		Use: "ports NAME | ports -a", Short: "List what listens in a VM, or in all that run", Args: cobra.MaximumNArgs(1), ValidArgsFunction: c.complete(1),
		Long: "List what listens in a VM: scheme, port, endpoint, bind address, pid, process, command line.\nPrints the file `ports`; with -a those of all running VMs, each line beginning with the VM's name.",
		RunE: func(_ *cobra.Command, args []string) error {
			if all == (len(args) == 1) {
				return &failure{exitUsage, errors.New("give the name of one VM, or -a for all")}
			}
			if all {
				return c.allPorts(asJSON)
			}
			dir, err := c.tree().vm(args[0])
			if err != nil {
				return err
			}
			return c.show("cannot list the ports of "+args[0], filepath.Join(dir, twin("ports", asJSON)), "")
		},
	}
	jsonFlag(cmd, &asJSON)
	cmd.Flags().BoolVarP(&all, "all", "a", false, "of all running VMs; as JSON an object with a list for each VM")
	return cmd
}

// allPorts prints the ports of all running VMs in the order of their names, and fails as the first that failed.
func (c *client) allPorts(asJSON bool) error {
	if err := c.tree().check(); err != nil {
		return err
	}
	names := c.tree().names()
	texts, errs := make([]string, len(names)), make([]error, len(names))
	slots := make(chan struct{}, portsAtOnce)
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Add(1)
		go func() {
			defer wg.Done()
			slots <- struct{}{}
			defer func() { <-slots }()
			texts[i], errs[i] = read(filepath.Join(c.tree().top("vms"), name, twin("ports", asJSON)))
		}()
	}
	wg.Wait()
	width := 0
	for i, name := range names {
		if errs[i] == nil && texts[i] != "" {
			width = max(width, len(name))
		}
	}
	var first error
	byName := map[string]json.RawMessage{}
	for i, name := range names {
		switch err := errs[i]; {
		case errors.Is(err, syscall.EHOSTDOWN) || errors.Is(err, syscall.ENOENT): // not running, or removed meanwhile
		case err != nil:
			err = explain("cannot list the ports of "+name, "", err)
			if first == nil {
				first = err
			} else {
				fmt.Fprintln(c.std.err, "banger:", printable.Message(err.Error()))
			}
		case asJSON:
			byName[name] = json.RawMessage(texts[i])
		default:
			for _, line := range lines(texts[i]) {
				fmt.Fprintf(c.std.out, "%-*s  %s\n", width, name, line)
			}
		}
	}
	if asJSON {
		b, err := json.Marshal(byName)
		if err != nil {
			return &failure{exitFailed, err}
		}
		fmt.Fprintf(c.std.out, "%s\n", b)
	}
	return first
}
