package proxywasm

//go:wasmexport proxy_abi_version_0_2_1
func abiVersion() {}

//go:wasmexport proxy_on_vm_start
func onVMStart(_ uint32, size uint32) uint32 {
	if size > 0 {
		vmConfiguration = buffer(bufferVMConfig, size)
	}
	return 1
}

//go:wasmexport proxy_on_configure
func onConfigure(root uint32, size uint32) uint32 {
	plugin := plugins[root]
	plugin.Configuration = nil
	if size > 0 {
		plugin.Configuration = buffer(bufferPluginConfig, size)
	}
	Info("configuration: " + string(plugin.Configuration))
	if filter.Configure != nil && !filter.Configure(plugin) {
		return 0
	}
	return 1
}

//go:wasmexport proxy_on_context_create
func onContextCreate(context uint32, parent uint32) {
	if parent == contextOfNoParent {
		plugins[context] = &Plugin{id: context}
	} else {
		streams[context] = &Stream{Plugin: plugins[parent], id: context}
	}
}

//go:wasmexport proxy_on_request_headers
func onRequestHeaders(context uint32, _ uint32, end uint32) uint32 {
	if filter.RequestHeaders == nil {
		return actionContinue
	}
	return action(filter.RequestHeaders(streams[context], end != 0))
}

//go:wasmexport proxy_on_request_body
func onRequestBody(context uint32, size uint32, end uint32) uint32 {
	if filter.RequestBody == nil {
		return actionContinue
	}
	return action(filter.RequestBody(streams[context], int(size), end != 0))
}

//go:wasmexport proxy_on_response_headers
func onResponseHeaders(context uint32, _ uint32, _ uint32) uint32 {
	stream := streams[context]
	stream.AddResponseHeader("x-filter", filter.Name)
	if filter.ResponseHeaders != nil {
		filter.ResponseHeaders(stream)
	}
	return actionContinue
}

//go:wasmexport proxy_on_http_call_response
func onHTTPCallResponse(_ uint32, call uint32, headers uint32, _ uint32, _ uint32) {
	stream := calls[call]
	delete(calls, call)
	if stream != nil && streams[stream.id] == stream && filter.CallResponse != nil {
		filter.CallResponse(stream, int(headers))
	}
}

//go:wasmexport proxy_on_done
func onDone(_ uint32) uint32 { return 1 }

//go:wasmexport proxy_on_delete
func onDelete(context uint32) {
	delete(streams, context)
	delete(plugins, context)
}

func action(goOn bool) uint32 {
	if goOn {
		return actionContinue
	}
	return actionPause
}
