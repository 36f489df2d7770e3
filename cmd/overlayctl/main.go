package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/overlayd/overlayd/controlplane"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], environment{
		stdin:       os.Stdin,
		stdout:      os.Stdout,
		stderr:      os.Stderr,
		getenv:      os.Getenv,
		now:         time.Now,
		namespaces:  namespaces,
		recoverNode: controlplane.Recover,
	}))
}

// namespaces are those that `ip netns` lists.
func namespaces() []string {
	entries, err := os.ReadDir("/run/netns")
	if err != nil {
		return nil // there are none
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
