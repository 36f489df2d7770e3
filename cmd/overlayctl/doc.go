// Command overlayctl is the operator's view of a node: it asks the overlayd of this host, over its unix
// socket, and prints tables or JSON.
//
//	overlayctl status
//	overlayctl network ls
//	overlayctl fdb NETWORK
//	overlayctl peers
//	overlayctl drops [--follow] [--network NETWORK]
//	overlayctl version
//	overlayctl lab run|up|exec|status|down
//	overlayctl bench [show FILE]
//	overlayctl completion bash|zsh|fish|powershell
//
// The socket is that of --socket, else of the environment variable OVERLAYD_SOCKET, else
// /run/overlayd/overlayd.sock. With -o json a listing is printed as the API sends it; `drops --follow -o
// json` prints one object a line. The exit code is 0 when all went well, 1 when something failed, such as a
// daemon that does not run, and 2 when the command line is at fault.
//
// `lab` is that of bench/lab: hosts in network namespaces to try things out on. `bench` is that of
// bench/compare: overlayd measured beside the kernel's VXLAN. Neither needs a daemon on this host.
//
// Concurrency: one goroutine, besides those of net/http and bench. The package must not import vtep: all
// that it knows of a daemon comes through controlplane/api.
package main
