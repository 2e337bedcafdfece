// Udp serves and sends datagrams. Guests have no other program for that.
//
//	udp serve NAME PORT...    answers "NAME got" and the datagram, on all addresses, until a kill
//	udp ask ADDRESS:PORT TIME prints the answer, which must arrive within that time
package main

import (
	"fmt"
	"net"
	"os"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "udp:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 3 {
		return fmt.Errorf("usage: udp serve NAME PORT... | udp ask ADDRESS:PORT TIME")
	}
	if args[0] == "ask" {
		return ask(args[1], args[2])
	}
	failed := make(chan error)
	for _, port := range args[2:] {
		c, err := net.ListenPacket("udp", ":"+port)
		if err != nil {
			return err
		}
		go func() { failed <- serve(c, args[1]) }()
	}
	return <-failed
}

func serve(c net.PacketConn, name string) error {
	b := make([]byte, 1<<16)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return err
		}
		answer := fmt.Appendf(nil, "%s got %s", name, b[:n])
		_, _ = c.WriteTo(answer, from) // there may be no route back
	}
}

func ask(address, within string) error {
	limit, err := time.ParseDuration(within)
	if err != nil {
		return err
	}
	c, err := net.Dial("udp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("a question")); err != nil {
		return err
	}
	b := make([]byte, 1<<16)
	n, err := c.Read(b)
	if err != nil {
		return err
	}
	fmt.Printf("%s\n", b[:n])
	return nil
}
